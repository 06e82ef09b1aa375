#include "stages/quantize/largest.h"

#include <limits>

#include "stages/quantize/squeezellm/outlier_thresholds.h"

namespace roundhouse {

float select_over_ranks(Communicator& ranks, bool magnitude, std::int64_t rank,
                        const std::function<void(KeySelection& selection)>& count) {
  KeySelection selection(magnitude, rank);
  while (!selection.done()) {
    selection.begin_round();
    count(selection);
    add_over_ranks(ranks, selection.counts());
    selection.end_round();
  }
  return selection.value();
}

float magnitude_of_largest(Communicator& team, std::int64_t weights, double percent,
                           const std::function<void(KeySelection& selection)>& count) {
  const std::int64_t rank = sensitive_rank(weights, percent);
  if (rank == 0) return std::numeric_limits<float>::infinity();
  return select_over_ranks(team, true, rank, count);
}

Tensor remove_large(Tensor& w, float large_from, Backend& backend) {
  Tensor none(backend, DType::kF32, w.rows(), w.cols());
  Tensor removed(backend, DType::kU8, w.rows(), w.cols());
  backend.zero(none.view());
  backend.remove_outliers({.w = w.view(),
                           .sensitivity = none.view(),
                           .sensitive_above = std::numeric_limits<float>::infinity(),
                           .large_from = large_from,
                           .removed = removed.view()});
  return removed;
}

}  // namespace roundhouse
