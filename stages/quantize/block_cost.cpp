#include "stages/quantize/block_cost.h"

namespace roundhouse {

double BlockSizes::rows(int linear) const {
  return static_cast<double>(block.linears()[linear].rows);
}

double BlockSizes::weights(std::size_t first, std::size_t last) const {
  double sum = 0;
  for (std::size_t g = first; g <= last; ++g) {
    for (const int i : block.shared_inputs()[g].linears)
      sum += rows(i) * cols(block.shared_inputs()[g]);
  }
  return sum;
}

double BlockSizes::stream_bytes() const {
  return kBytesOfActivation * tokens * static_cast<double>(block.hidden_size());
}

bool works_in_f32(const std::string& phase) { return phase == "factor" || phase == "solve"; }

}  // namespace roundhouse
