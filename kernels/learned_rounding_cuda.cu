#include "base/error.h"
#include "kernels/cuda_backend.h"

namespace roundhouse {

void CudaBackend::find_ranges(const FindRanges&) {
  throw Error("learned rounding has no CUDA kernels yet");
}

void CudaBackend::round_learned(const RoundLearned&) {
  throw Error("learned rounding has no CUDA kernels yet");
}

void CudaBackend::learn_rounding(const LearnRounding&) {
  throw Error("learned rounding has no CUDA kernels yet");
}

}  // namespace roundhouse
