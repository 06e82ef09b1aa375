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
  void row_errors(const RowErrors& op) override;

  void column_magnitudes(const ColumnMagnitudes& op) override;
  void compare_rows(const CompareRows& op) override;
  void scaled_rounding(const ScaledRounding& op) override;
  void fold_scales(const FoldScales& op) override;
  void group_grams(const GroupGrams& op) override;
  void clip_groups(const ClipGroups& op) override;

  void find_ranges(const FindRanges& op) override;
  void round_learned(const RoundLearned& op) override;
  void learn_rounding(const LearnRounding& op) override;

 private:
  std::unique_ptr<CudaDevice> device_;
  std::size_t sharers_;
};

VisibleGpus visible_cuda_devices();
// Throws Error if there is no such device; names how many there are.
std::unique_ptr<Backend> make_cuda_backend(const BackendOptions& options);

}  // namespace roundhouse
