// The CPU. Kernels take F32 only (copy, zero and dequantize know the other types too); with BackendOptions::bf16 large products round
// their factors. Calls return when the work is done. An object may be used by one thread at a time; different objects by different
// ones.
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

 private:
  void run(const Matmul& op) override;
  void run(const Linear& op) override;
  void run(const Gram& op) override;
  bool run(const Cholesky& op) override;
  void run(const TriangularInverse& op) override;
  void run_symmetrize(Matrix h) override;
  void run_reverse(ConstMatrix from, Matrix to) override;
  void run(const AddUp& op) override;
  void run_scale(float factor, Matrix m) override;
  void run(const Gather& op) override;

  void run(const RmsNorm& op) override;
  void run(const LayerNorm& op) override;
  void run(const Rope& op) override;
  void run(const Attention& op) override;
  void run(const GatedProduct& op) override;
  void run(const ScaledSum& op) override;
  void run(const SoftCap& op) override;
  void run(const Relu& op) override;
  void run(const CrossEntropy& op) override;
  void run(const CompareLogits& op) override;
  void run(const CheckFinite& op) override;

  void run(const RmsNormBackward& op) override;
  void run(const LayerNormBackward& op) override;
  void run(const AttentionBackward& op) override;
  void run(const GatedProductBackward& op) override;
  void run(const ReluBackward& op) override;
  double run(const SquaredError& op) override;
  void run(const LogSumExp& op) override;
  void run(const CrossEntropyBackward& op) override;
  void run(const AddGradient& op) override;

  void run(const FindGrid& op) override;
  void run(const RoundToGrid& op) override;
  void run(const Dequantize& op) override;
  void run(const GptqPanel& op) override;

  void run(const FindRanges& op) override;
  void run(const RoundLearned& op) override;
  void run(const LearnRounding& op) override;
  void run(const RowErrors& op) override;

  void run(const ColumnMagnitudes& op) override;
  void run(const CompareRows& op) override;
  void run(const ScaledRounding& op) override;
  void run(const FoldScales& op) override;
  void run(const GroupGrams& op) override;
  void run(const ClipGroups& op) override;

  void run(const ClusterRows& op) override;
  void run(const DequantizeTable& op) override;

  void run(const RoundingProducts& op) override;
  void run(const CountKeys& op) override;
  void run(const CountLarge& op) override;
  void run(const RemoveOutliers& op) override;

  void run(const PackCodes& op) override;
  void run(const UniformProduct& op) override;
  void run(const TableProduct& op) override;

  // One product in F32 or, where it is large and this backend was made so, with BF16 factors.
  struct Product;
  void multiply_tiles(const Product& product);
  bool in_bf16(std::int64_t m, std::int64_t n, std::int64_t k) const;
  // A row-major copy in BF16, in memory that is kept: `which` of two.
  const std::uint16_t* rounded(const ConstMatrix& m, int which);

  ThreadPool threads_;
  std::size_t sharers_;
  bool bf16_;
  std::vector<std::uint16_t> rounded_[2];
};

}  // namespace roundhouse
