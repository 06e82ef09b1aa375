// The batches of SignRound: which samples each step looks at, how a batch is cut into parts, and how its activations reach the
// ranks that work on them.
//
// A batch's gradient is the sum over its parts, added in a fixed tree (comm/tree_sum.h). The cut follows from the problem alone:
// a part is about a thousand tokens, and there are four parts at least. Parts are dealt to ranks in runs; any rank may
// compute any sample's gradient, so samples travel from the rank that holds their shard to the one that has their part.
#pragma once

#include <cstdint>
#include <deque>
#include <optional>
#include <vector>

#include "base/random.h"
#include "stages/quantize/method.h"
#include "stages/quantize/signround/settings.h"

namespace roundhouse {

// The same on every rank: follows from its arguments.
class BatchSampler {
 public:
  // Batches of min(batch_size, samples) different samples out of [0, samples).
  BatchSampler(Sampling sampling, int samples, int batch_size, std::uint64_t seed, int block);
  std::vector<int> next();

 private:
  Sampling sampling_;
  std::size_t size_;
  Random random_;
  std::vector<int> order_;
  std::size_t used_ = 0;  // of order_, in this epoch
};

// Parts of a batch of `batch_size` sequences; part p has the slots parts_of_rank(batch_size, p, parts).
int parts_of_batch(int batch_size, std::int64_t length);

// One part of a batch in the backend's memory: [samples of the part * length, hidden].
struct BatchPart {
  int part;
  std::int64_t sequences;
  Tensor input;
  Tensor target;
};

// Brings the activations of batches to where they are needed, out of two streams of which each rank holds its shards.
class BatchLoader {
 public:
  BatchLoader(const BlockTask& task, Activations& input, Activations& target);

  // Collective: brings the samples of this rank's parts of the next batch. To be called again once the first part of this one is
  // wanted: then the next batch is on its way to the device, too, while the device works.
  void fetch(const std::vector<int>& batch, int parts);
  // This rank's parts in order, batch by batch. Where another one is known, its copies begin here, beside the work on this one.
  // Precondition: there is one.
  BatchPart next();

 private:
  // The rows of one sample in one stream: in a shard of this rank, or received.
  using Rows = std::span<std::byte>;
  struct Slot {
    Rows input, target;
  };
  struct Waiting {  // a part that is not on its way to the device yet
    int part;
    std::vector<Slot> slots;
  };
  struct Loading {
    BatchPart part;
    std::vector<Memory::UploadTicket> tickets;
  };
  void load_ahead();
  Rows rows_of(Activations& stream, int sample) const;
  int holder_of(int sample) const;

  const BlockTask& task_;
  Activations& input_;
  Activations& target_;
  std::size_t sample_bytes_;
  std::deque<Waiting> waiting_;
  std::optional<Loading> loading_;
  // Memory of what was received, kept from batch to batch: of two in turn, since the one before may still be on its way to the
  // device.
  std::vector<std::vector<std::byte>> received_[2];
  int turn_ = 0;
};

}  // namespace roundhouse
