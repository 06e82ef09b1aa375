// What a recipe of SignRound may set (signround.h).
#pragma once

#include <cstdint>

#include "model/quantized/linear_scheme.h"

namespace roundhouse {

enum class Sampling {
  kIndependent,  // each batch is drawn by itself (Cheng et al. 2023)
  kEpochs  // consecutive runs of a random order, made anew when less than a batch of it is left (auto-round today)
};

struct SignRoundSettings {
  LinearScheme scheme;
  int iterations = 200;
  int batch_size = 8;
  int samples = 512;  // fewer if the run has fewer
  Sampling sampling = Sampling::kIndependent;
  double rate = 0.005;        // of the first step, for the offsets
  double range_rate = 0.005;  // for the groups' ranges; 0: they are not tuned
  bool quantized_input = true;
  bool best_loss = true;
  std::uint64_t seed = 42;
};

}  // namespace roundhouse
