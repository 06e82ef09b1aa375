// What the threads of a block do together. Reductions add in an order that depends on the number of threads alone, and leave
// the result with every thread.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace roundhouse {

inline constexpr int kWarp = 32;
inline constexpr unsigned kAllLanes = 0xffffffffu;

extern __shared__ __align__(128) unsigned char dynamic_shared[];

// All shared memory is asked for at launch: sizeof(T) bytes at least.
template <class T>
__device__ inline T& shared_memory() {
  return *reinterpret_cast<T*>(dynamic_shared);
}

template <class T, class Combine>
__device__ inline T warp_reduce(T value, Combine combine) {
  for (int distance = kWarp / 2; distance > 0; distance /= 2) {
    value = combine(value, __shfl_xor_sync(kAllLanes, value, distance));
  }
  return value;
}

struct Plus {
  template <class T>
  __device__ T operator()(T a, T b) const {
    return a + b;
  }
};
struct Larger {
  template <class T>
  __device__ T operator()(T a, T b) const {
    return a > b ? a : b;
  }
};
struct Smaller {
  __device__ float operator()(float a, float b) const { return a < b ? a : b; }
};

// `parts` is shared memory for one value a warp. All threads of the block must call.
template <int kThreads, class T, class Combine>
__device__ inline T block_reduce(T value, T* parts, Combine combine) {
  constexpr int kWarps = kThreads / kWarp;
  value = warp_reduce(value, combine);
  if constexpr (kWarps == 1) return value;
  __syncthreads();  // a reduction before this one may still read `parts`
  if (threadIdx.x % kWarp == 0) parts[threadIdx.x / kWarp] = value;
  __syncthreads();
  value = parts[0];
  for (int warp = 1; warp < kWarps; ++warp) value = combine(value, parts[warp]);
  return value;
}

}  // namespace roundhouse
