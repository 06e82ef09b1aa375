// Which attention runs on tensor cores: the kernels that do without them are 20 to 40 times slower on a GPU, and results do
// not show which ran.
#include <gtest/gtest.h>

#include <kernels/cuda/tensor_core.cuh>

#include "kernels/gradients.h"
#include "tests/kernels/backend_test.h"

namespace roundhouse {
namespace {

struct Products {
  std::uint64_t forward, backward;
};

// Of two sequences of five tokens, two heads that share keys and values.
Products products(std::int64_t head_dim, const Layout& layout) {
  constexpr std::int64_t kTokens = 10, kHeads = 2;
  const auto backend = make_backend("cuda", {});
  const auto matrix = [&](std::int64_t heads) {
    return Wide(*backend, constant_matrix(kTokens, heads * head_dim, 0.5), layout);
  };
  Wide q = matrix(kHeads), k = matrix(1), v = matrix(1), out = matrix(kHeads);
  Wide d_out = matrix(kHeads), dq = matrix(kHeads), dk = matrix(1), dv = matrix(1);
  Wide sums(*backend, constant_matrix(kTokens, kHeads, 0.0));
  const std::uint64_t before = emulation::tensor_core_products();
  backend->attention({.q = q,
                      .k = k,
                      .v = v,
                      .out = out,
                      .heads = kHeads,
                      .kv_heads = 1,
                      .head_dim = head_dim,
                      .length = kTokens / 2,
                      .window = 0,
                      .scale = 0.1f,
                      .log_sum_exp = sums});
  backend->sync();
  const std::uint64_t between = emulation::tensor_core_products();
  backend->attention_backward({.q = q,
                               .k = k,
                               .v = v,
                               .out = out,
                               .log_sum_exp = sums,
                               .d_out = d_out,
                               .dq = dq,
                               .dk = dk,
                               .dv = dv,
                               .heads = kHeads,
                               .kv_heads = 1,
                               .head_dim = head_dim,
                               .length = kTokens / 2,
                               .window = 0,
                               .scale = 0.1f});
  backend->sync();
  return {between - before, emulation::tensor_core_products() - between};
}

TEST(CudaEmulationAttentionTest, HeadsOfEveryMultipleOfEightRunOnTensorCores) {
  for (std::int64_t head_dim = 8; head_dim <= 256; head_dim += 8) {
    const Products made = products(head_dim, {DType::kBF16, 8});
    EXPECT_GT(made.forward, 0u) << "heads of " << head_dim;
    EXPECT_GT(made.backward, 0u) << "heads of " << head_dim;
  }
}

TEST(CudaEmulationAttentionTest, OtherHeadsTypesAndRowsThatAreNotAlignedDoNot) {
  for (const auto& [head_dim, layout] :
       {std::pair{64, Layout{DType::kF32, 8}}, {64, {DType::kBF16, 3}}, {12, {DType::kBF16, 8}}}) {
    const Products made = products(head_dim, layout);
    EXPECT_EQ(made.forward, 0u) << "heads of " << head_dim;
    EXPECT_EQ(made.backward, 0u) << "heads of " << head_dim;
  }
}

}  // namespace
}  // namespace roundhouse
