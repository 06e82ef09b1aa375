// The CPU. Kernels take F32 only (copy, zero and dequantize know the other types too). Calls return
// when the work is done. An object may be used by one thread at a time; different objects by
// different ones.
#pragma once

#include "kernels/backend.h"
#include "kernels/cpu/thread_pool.h"

namespace roundhouse {

class CpuBackend : public Backend {
 public:
  explicit CpuBackend(const BackendOptions& options);
  std::string description() const override;
  std::string computes_as() const override;

  Buffer allocate(std::size_t bytes) override;
  void upload(std::span<const std::byte> from, void* to) override;
  void download(const void* from, std::span<std::byte> to) override;
  void copy(ConstMatrix from, Matrix to) override;
  void zero(Matrix m) override;
  void sync() override {}
  bool is_host_memory() const override { return true; }
  std::size_t available_bytes() const override;
  DType activation_type() const override { return DType::kF32; }

  void matmul(const Matmul& op) override;
  void linear(const Linear& op) override;
  void gram(const Gram& op) override;
  [[nodiscard]] bool cholesky(const Cholesky& op) override;
  void triangular_inverse(const TriangularInverse& op) override;
  void symmetrize(Matrix h) override;
  void reverse(ConstMatrix from, Matrix to) override;
  void add(ConstMatrix from, Matrix into) override;
  void scale(float factor, Matrix m) override;
  void gather(const Gather& op) override;

  void rms_norm(const RmsNorm& op) override;
  void layer_norm(const LayerNorm& op) override;
  void rope(const Rope& op) override;
  void attention(const Attention& op) override;
  void silu_gate(const SiluGate& op) override;
  void relu(const Relu& op) override;
  void cross_entropy(const CrossEntropy& op) override;
  void check_finite(const CheckFinite& op) override;

  void rms_norm_backward(const RmsNormBackward& op) override;
  void layer_norm_backward(const LayerNormBackward& op) override;
  void attention_backward(const AttentionBackward& op) override;
  void silu_gate_backward(const SiluGateBackward& op) override;
  void relu_backward(const ReluBackward& op) override;
  [[nodiscard]] double squared_error(const SquaredError& op) override;

  void find_grid(const FindGrid& op) override;
  void round_to_grid(const RoundToGrid& op) override;
  void dequantize(const Dequantize& op) override;
  void gptq_panel(const GptqPanel& op) override;

  void find_ranges(const FindRanges& op) override;
  void round_learned(const RoundLearned& op) override;
  void learn_rounding(const LearnRounding& op) override;
  void row_errors(const RowErrors& op) override;

  void column_magnitudes(const ColumnMagnitudes& op) override;
  void compare_rows(const CompareRows& op) override;
  void scaled_rounding(const ScaledRounding& op) override;
  void fold_scales(const FoldScales& op) override;
  void group_grams(const GroupGrams& op) override;
  void clip_groups(const ClipGroups& op) override;

 private:
  ThreadPool threads_;
  std::size_t sharers_;
};

}  // namespace roundhouse
