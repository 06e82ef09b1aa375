#include "kernels/cpu/bf16_product.h"

#include <oneapi/dnnl/dnnl.hpp>

#include <map>
#include <string>
#include <tuple>

#include "base/error.h"

namespace roundhouse {
namespace {

// Of the products of one shape: what the library generates code for.
using ProductShape = std::tuple<std::int64_t, std::int64_t, std::int64_t, std::int64_t, bool,
                                std::int64_t, bool, std::int64_t, bool>;

struct Prepared {
  dnnl::memory::desc a, b, c;
  dnnl::matmul product;
};

const dnnl::engine& engine() {
  static const dnnl::engine of_cpu(dnnl::engine::kind::cpu, 0);
  return of_cpu;
}

dnnl::memory::desc describe(std::int64_t rows, std::int64_t cols, std::int64_t stride,
                            bool transposed, dnnl::memory::data_type type) {
  return {{rows, cols},
          type,
          transposed ? dnnl::memory::dims{1, stride} : dnnl::memory::dims{stride, 1}};
}

Prepared prepare(const Bf16Product& op) {
  using Type = dnnl::memory::data_type;
  Prepared prepared{describe(op.m, op.k, op.a_stride, op.transpose_a, Type::bf16),
                    describe(op.k, op.n, op.b_stride, op.transpose_b, Type::bf16),
                    describe(op.m, op.n, op.c_stride, false, Type::f32),
                    {}};
  dnnl::primitive_attr attributes;
  if (op.accumulate) {
    dnnl::post_ops after;
    after.append_sum(1.0f);
    attributes.set_post_ops(after);
  }
#if DNNL_VERSION_MAJOR >= 3
  prepared.product = dnnl::matmul(
      dnnl::matmul::primitive_desc(engine(), prepared.a, prepared.b, prepared.c, attributes));
#else
  prepared.product = dnnl::matmul(dnnl::matmul::primitive_desc(
      dnnl::matmul::desc(prepared.a, prepared.b, prepared.c), attributes, engine()));
#endif
  return prepared;
}

// A thread's own: primitives share memory to work in.
const Prepared& prepared_for(const Bf16Product& op) {
  constexpr std::size_t kMost = 256;
  static thread_local std::map<ProductShape, Prepared> known;
  const ProductShape shape{op.m,        op.n,           op.k,        op.a_stride,  op.transpose_a,
                           op.b_stride, op.transpose_b, op.c_stride, op.accumulate};
  if (const auto found = known.find(shape); found != known.end()) return found->second;
  if (known.size() == kMost) known.clear();
  return known.emplace(shape, prepare(op)).first->second;
}

dnnl::memory memory_at(const dnnl::memory::desc& shape, const void* data) {
  return {shape, engine(), const_cast<void*>(data)};
}

}  // namespace

void bf16_product(const Bf16Product& op) {
  if (op.m == 0 || op.n == 0) return;
  require(op.k > 0, "a product without an inner dimension");
  try {
    static thread_local dnnl::stream stream(engine());
    const Prepared& prepared = prepared_for(op);
    prepared.product.execute(stream, {{DNNL_ARG_SRC, memory_at(prepared.a, op.a)},
                                      {DNNL_ARG_WEIGHTS, memory_at(prepared.b, op.b)},
                                      {DNNL_ARG_DST, memory_at(prepared.c, op.c)}});
    stream.wait();
  } catch (const dnnl::error& error) {
    throw Error(std::string("oneDNN's product of BF16 failed: ") + error.what());
  }
}

namespace {

bool knows(dnnl_cpu_isa_t isa) {
  const auto vectors = static_cast<unsigned>(dnnl_get_effective_cpu_isa());
  return (vectors & static_cast<unsigned>(isa)) == static_cast<unsigned>(isa);
}

}  // namespace

bool has_bf16_products() { return knows(dnnl_cpu_isa_avx512_core_bf16); }

std::string bf16_vectors() { return knows(dnnl_cpu_isa_avx512_core_amx) ? "AMX" : "AVX-512"; }

}  // namespace roundhouse
