#include <sched.h>
#include <sys/mman.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <new>

#include <fmt/format.h>

#include "base/counted.h"
#include "base/error.h"
#include "kernels/cpu/bf16_product.h"
#include "kernels/cpu/cpu_backend.h"
#include "kernels/cpu/parallel.h"
#include "kernels/cpu/sgemm.h"

namespace roundhouse {
namespace {

int usable_processors() {
  cpu_set_t set;
  if (::sched_getaffinity(0, sizeof(set), &set) != 0) return 1;
  return CPU_COUNT(&set);
}

}  // namespace

CpuBackend::CpuBackend(const BackendOptions& options)
    : threads_(options.threads > 0 ? options.threads : usable_processors()),
      sharers_(static_cast<std::size_t>(options.sharers)),
      bf16_(options.bf16) {
  if (bf16_ && !has_bf16_products()) {
    throw InputError("cpu_precision: bf16: this processor, or " + sgemm_library() +
                     ", has no products of BF16 (AVX-512 BF16 or AMX); compute where there are, or "
                     "set it to f32, in another run folder");
  }
}

std::size_t CpuBackend::available_bytes() const { return available_host_memory() / sharers_; }

std::string CpuBackend::description() const {
  const char* const vectors = __builtin_cpu_supports("avx512f") ? ", AVX-512"
                              : __builtin_cpu_supports("avx2")  ? ", AVX2"
                                                                : "";
  const char* const precision = bf16_ ? ", products in BF16" : "";
  return fmt::format("CPU, {}{}{}", counted(threads_.size(), "thread"), vectors, precision);
}

// Our own kernels are cloned for these levels (target_clones); the compiler decides what it fuses in each.
std::string CpuBackend::computes_as() const {
#if defined(__clang__)
  // Clang 16 does not know the levels by name here: by what only processors of that level have.
  const bool v3 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("bmi2") &&
                  __builtin_cpu_supports("fma");
  const bool v4 = v3 && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512cd") &&
                  __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
#else
  const bool v3 = __builtin_cpu_supports("x86-64-v3");
  const bool v4 = __builtin_cpu_supports("x86-64-v4");
#endif
  const char* const level = v4 ? "x86-64-v4" : v3 ? "x86-64-v3" : "x86-64";
  return std::string("CPU ") + level + ", " + sgemm_library() + ", GCC " + __VERSION__ +
         (bf16_ ? ", BF16 products by " + bf16_vectors() : "");
}

Buffer CpuBackend::allocate(std::size_t bytes) {
  // A cache line, and the widest vector. What is large begins with a page of that size, if the system has such: the first touch of
  // weights would else be half of loading them.
  constexpr std::size_t kLine = 64, kHugePage = std::size_t{2} << 20, kLarge = 4 * kHugePage;
  const std::size_t alignment = bytes >= kLarge ? kHugePage : kLine;
  const std::size_t rounded = (bytes + alignment - 1) / alignment * alignment;
  void* const memory =
      rounded < bytes ? nullptr : std::aligned_alloc(alignment, std::max(rounded, alignment));
  if (memory == nullptr) throw Error(fmt::format("out of memory: {} bytes wanted", bytes));
  if (alignment == kHugePage) (void)::madvise(memory, rounded, MADV_HUGEPAGE);
  return {static_cast<std::byte*>(memory), [](std::byte* p) { std::free(p); }};
}

void CpuBackend::upload(std::span<const std::byte> from, void* to) {
  constexpr std::int64_t kPieceBytes = 1 << 20;
  for_each_range(threads_, std::ssize(from), kPieceBytes,
                 [&](std::int64_t begin, std::int64_t end) {
                   std::memcpy(static_cast<std::byte*>(to) + begin, from.data() + begin,
                               static_cast<std::size_t>(end - begin));
                 });
}

void CpuBackend::download(const void* from, std::span<std::byte> to) {
  std::copy_n(static_cast<const std::byte*>(from), to.size(), to.begin());
}

void CpuBackend::copy(ConstMatrix from, Matrix to) {
  require(from.rows == to.rows && from.cols == to.cols, "copy: shapes differ");
  if (from.cols == 0) return;
  for_each_range(threads_, from.rows, rows_per_piece(from.cols),
                 [&](std::int64_t begin, std::int64_t end) {
                   for (std::int64_t row = begin; row < end; ++row) {
                     const void* const source = from.row_range(row, row + 1).data;
                     void* const target = to.row_range(row, row + 1).data;
                     const std::size_t n = static_cast<std::size_t>(from.cols);
                     if (from.type == to.type) {
                       std::memcpy(target, source, n * size_of(from.type));
                     } else {
                       convert(from.type, source, to.type, target, n);
                     }
                   }
                 });
}

void CpuBackend::zero(Matrix m) {
  if (m.cols == 0) return;
  for_each_range(threads_, m.rows, rows_per_piece(m.cols),
                 [&](std::int64_t begin, std::int64_t end) {
                   for (std::int64_t row = begin; row < end; ++row) {
                     std::memset(m.row_range(row, row + 1).data, 0,
                                 static_cast<std::size_t>(m.cols) * size_of(m.type));
                   }
                 });
}

}  // namespace roundhouse
