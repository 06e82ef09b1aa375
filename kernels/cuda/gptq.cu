// A warp keeps a row of the panel in registers, four columns a lane, and U's block in the shared memory of its block: the
// columns are done one after another without leaving the kernel.
//
// Compiled without fused multiply-add but where it is written (see CMakeLists.txt): with these, a row has the bits that the
// CPU gives it.
#include <algorithm>

#include "base/error.h"
#include "kernels/cuda/block.cuh"
#include "kernels/cuda/cuda_backend.h"
#include "kernels/cuda/device.cuh"
#include "kernels/cuda/launch.cuh"

namespace roundhouse {
namespace {

constexpr int kPanel = 128;
constexpr int kPerLane = kPanel / kWarp;
constexpr int kRows = 16;  // of a block: a warp each, which share U
constexpr int kThreads = kRows * kWarp;

struct PanelOfU {
  float at[kPanel][kPanel];
};

__global__ void __launch_bounds__(kThreads) gptq_panel_kernel(GptqPanel op) {
  PanelOfU& u = shared_memory<PanelOfU>();
  const int cols = static_cast<int>(op.w.cols);
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  for (int i = warp; i < cols; i += kRows) {  // only the triangle is there to be read
    for (int j = lane; j < cols; j += kWarp) {
      if (j >= i) u.at[i][j] = static_cast<const float*>(op.u.data)[i * op.u.stride + j];
    }
  }
  __syncthreads();
  const std::int64_t row = static_cast<std::int64_t>(blockIdx.x) * kRows + warp;
  if (row >= op.w.rows) return;

  // Column kWarp * k + lane is this lane's k-th.
  float w[kPerLane];
  float scale[kPerLane];
  int zero[kPerLane];
  const float* const from = static_cast<const float*>(op.w.data) + row * op.w.stride;
  const float* const scales = static_cast<const float*>(op.scales.data) + row * op.scales.stride;
  const std::uint8_t* const zeros =
      static_cast<const std::uint8_t*>(op.zeros.data) + row * op.zeros.stride;
#pragma unroll
  for (int k = 0; k < kPerLane; ++k) {
    const int col = kWarp * k + lane;
    w[k] = col < cols ? from[col] : 0.0f;
    scale[k] = col < cols ? scales[col] : 1.0f;
    zero[k] = col < cols ? zeros[col] : 0;
  }

  const int qmax = (1 << op.bits) - 1;
  std::uint8_t* const codes = static_cast<std::uint8_t*>(op.codes.data) + row * op.codes.stride;
  float* const errors = static_cast<float*>(op.errors.data) + row * op.errors.stride;
  float loss = 0.0f;
#pragma unroll
  for (int k = 0; k < kPerLane; ++k) {
    int my_code = 0;
    float my_error = 0.0f;
    const int steps = cols - kWarp * k < kWarp ? cols - kWarp * k : kWarp;
    for (int step = 0; step < steps; ++step) {
      const int i = kWarp * k + step;
      // Every lane for its own column; the step's lane is the one that counts.
      const int code = code_of(w[k], scale[k], zero[k], qmax);
      const float off = fmaf(-scale[k], static_cast<float>(code - zero[k]), w[k]);
      const float error = __shfl_sync(kAllLanes, off / u.at[i][i], step);
      if (lane == step) {
        my_code = code;
        my_error = error;
      }
      loss = fmaf(0.5f * error, error, loss);
      if (lane > step && kWarp * k + lane < cols) {
        w[k] = fmaf(-error, u.at[i][kWarp * k + lane], w[k]);
      }
#pragma unroll
      for (int later = k + 1; later < kPerLane; ++later) {
        const int col = kWarp * later + lane;
        if (col < cols) w[later] = fmaf(-error, u.at[i][col], w[later]);
      }
    }
    if (kWarp * k + lane < cols) {
      codes[kWarp * k + lane] = static_cast<std::uint8_t>(my_code);
      errors[kWarp * k + lane] = my_error;
    }
  }
  if (lane == 0) static_cast<float*>(op.row_loss.data)[row * op.row_loss.stride] += loss;
}

}  // namespace

void CudaBackend::run(const GptqPanel& op) {
  const std::int64_t rows = op.w.rows;
  const std::int64_t cols = op.w.cols;
  for (std::int64_t begin = 0; begin < cols; begin += kPanel) {
    const std::int64_t end = std::min<std::int64_t>(begin + kPanel, cols);
    const ConstMatrix u = op.u.row_range(begin, end);
    GptqPanel part = op;
    part.w = op.w.col_range(begin, end);
    part.u = u.col_range(begin, end);
    part.scales = op.scales.col_range(begin, end);
    part.zeros = op.zeros.col_range(begin, end);
    part.codes = op.codes.col_range(begin, end);
    part.errors = op.errors.col_range(begin, end);
    launch(gptq_panel_kernel,
           {.grid = blocks_for(rows, kRows),
            .threads = kThreads,
            .shared_bytes = sizeof(PanelOfU),
            .stream = device_->stream()},
           part);
    if (end == cols) break;
    matmul(
        {.a =
             part.errors,  // a panel wider than a warp's registers: the rest of it as the caller would
         .b = u.col_range(end, cols),
         .c = op.w.col_range(end, cols),
         .alpha = -1.0f,
         .beta = 1.0f});
  }
}

}  // namespace roundhouse
