// One NVIDIA GPU (compute capability 8.0 or later). Weights and activations are BF16; kernels take F32 too.
//
// Calls return when the work is queued on the backend's stream; those that hand results to the host wait for them. Nothing
// depends on timing: no atomic sums, fixed shapes of work, so a run repeats its bits on the same kind of GPU. An object may
// be used by one thread at a time.
#pragma once

#include <memory>

#include "kernels/backend.h"

namespace roundhouse {

class CudaDevice;

class CudaBackend : public Backend {
 public:
  explicit CudaBackend(const BackendOptions& options);
  ~CudaBackend() override;
  std::string description() const override;
  std::string computes_as() const override;

  Buffer allocate(std::size_t bytes) override;
  void upload(std::span<const std::byte> from, void* to) override;
  void download(const void* from, std::span<std::byte> to) override;
  void copy(ConstMatrix from, Matrix to) override;
  void zero(Matrix m) override;
  void sync() override;
  UploadTicket upload_ahead(std::span<const std::byte> from, void* to) override;
  void await_upload(UploadTicket ticket) override;
  void download_behind(const void* from, std::span<std::byte> to) override;
  void finish_downloads() override;
  [[nodiscard]] std::string pin(std::span<std::byte> host) override;
  void unpin(std::span<std::byte> host) noexcept override;
  std::size_t available_bytes() const override;
  DType activation_type() const override { return DType::kBF16; }

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

  void run(const FindRanges& op) override;
  void run(const RoundLearned& op) override;
  void run(const LearnRounding& op) override;

  std::unique_ptr<CudaDevice> device_;
  std::size_t sharers_;
};

VisibleGpus visible_cuda_devices();
// Throws Error if there is no such device; names how many there are.
std::unique_ptr<Backend> make_cuda_backend(const BackendOptions& options);

}  // namespace roundhouse
