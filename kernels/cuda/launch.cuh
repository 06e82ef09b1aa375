// The only way to start a kernel: no launch goes unchecked.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <limits>
#include <source_location>

#include "base/error.h"
#include "kernels/cuda/check.cuh"

namespace roundhouse {

struct Launch {
  dim3 grid;
  int threads;
  std::size_t shared_bytes = 0;
  cudaStream_t stream;
  std::source_location where = std::source_location::current();
};

// Blocks of a grid's x dimension for `count` pieces of work, `each` to a block.
inline unsigned blocks_for(std::int64_t count, std::int64_t each = 1) {
  const std::int64_t blocks = (count + each - 1) / each;
  require(blocks <= std::numeric_limits<int>::max(), "more blocks than a grid has");
  return static_cast<unsigned>(blocks);
}

// Kernels count the columns of a row in int, and go beyond the last one by less than a block's work.
inline void check_columns(std::int64_t columns) {
  require(columns <= std::int64_t{1} << 30, "a row is longer than the GPU's kernels count: 2^30");
}

// An empty grid is no work (and would be an error of CUDA's).
template <class... Parameters, class... Arguments>
void launch(void (*kernel)(Parameters...), const Launch& how, const Arguments&... arguments) {
  constexpr std::size_t kWithoutAsking = 48 << 10;  // more shared memory has to be asked for
  if (how.grid.x == 0 || how.grid.y == 0 || how.grid.z == 0) return;
  if (how.shared_bytes > kWithoutAsking) {
    check(cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                               cudaFuncAttributeMaxDynamicSharedMemorySize,
                               static_cast<int>(how.shared_bytes)),
          "cudaFuncSetAttribute", how.where);
  }
  cudaLaunchConfig_t config = {};
  config.gridDim = how.grid;
  config.blockDim = dim3(static_cast<unsigned>(how.threads));
  config.dynamicSmemBytes = how.shared_bytes;
  config.stream = how.stream;
  check(cudaLaunchKernelEx(&config, kernel, static_cast<Parameters>(arguments)...), "a kernel",
        how.where);
}

}  // namespace roundhouse
