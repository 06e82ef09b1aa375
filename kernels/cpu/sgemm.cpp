#include "kernels/cpu/sgemm.h"

#include <fmt/format.h>
#include <oneapi/dnnl/dnnl.h>

#include <algorithm>

#include "base/error.h"

namespace roundhouse {

void sgemm(const Sgemm& op) {
  if (op.m == 0 || op.n == 0) return;
  if (op.k == 0) {
    for (std::int64_t i = 0; i < op.m; ++i) {
      float* const row = op.c + i * op.c_stride;
      for (std::int64_t j = 0; j < op.n; ++j) row[j] = op.beta == 0.0f ? 0.0f : op.beta * row[j];
    }
    return;
  }
  const dnnl_status_t status =
      dnnl_sgemm(op.transpose_a ? 'T' : 'N', op.transpose_b ? 'T' : 'N', op.m, op.n, op.k, op.alpha,
                 op.a, op.a_stride, op.b, op.b_stride, op.beta, op.c, op.c_stride);
  if (status != dnnl_success) {
    throw Error(fmt::format("oneDNN's sgemm failed with status {}", static_cast<int>(status)));
  }
}

std::string sgemm_library() {
  const dnnl_version_t& version = *dnnl_version();
  // Later extensions (VNNI, BF16, AMX) do not take part in products of F32. ONEDNN_MAX_CPU_ISA may keep it below the processor.
  const unsigned vectors = static_cast<unsigned>(dnnl_get_effective_cpu_isa());
  const auto knows = [vectors](dnnl_cpu_isa_t isa) {
    return (vectors & static_cast<unsigned>(isa)) == static_cast<unsigned>(isa);
  };
  return fmt::format("oneDNN {}.{}.{} with {}", version.major, version.minor, version.patch,
                     knows(dnnl_cpu_isa_avx512_core) ? "AVX-512"
                     : knows(dnnl_cpu_isa_avx2)      ? "AVX2"
                     : knows(dnnl_cpu_isa_avx)       ? "AVX"
                                                     : "SSE4.1");
}

std::int64_t tile_edge(std::int64_t m, std::int64_t n) {
  for (const std::int64_t edge : {1024, 512}) {
    if (((m + edge - 1) / edge) * ((n + edge - 1) / edge) >= 32) return edge;
  }
  return 256;
}

}  // namespace roundhouse
