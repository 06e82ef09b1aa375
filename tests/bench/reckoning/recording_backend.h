// A backend without a device: every call becomes what CudaBackend would queue for it, on a DeviceTimeline. Methods run on it as they
// are, at any shape, since nothing is computed and its memory is addresses alone.
//
// What the host asks for is made up: zeros; whatever is looked at is finite, positive definite and good enough, and the losses of
// one training step in kStepsToBetter are the least so far.
#pragma once

#include <cstddef>

#include "kernels/backend.h"
#include "tests/bench/reckoning/device_timeline.h"

namespace roundhouse {

class RecordingBackend final : public Backend {
 public:
  explicit RecordingBackend(const GpuRates& rates) : timeline_(rates) {}
  DeviceTimeline& timeline() { return timeline_; }
  std::size_t bytes_in_use() const { return in_use_; }
  std::size_t peak_bytes() const { return peak_; }
  void forget_peak() { peak_ = in_use_; }
  // squared_error() is called so often for each step of training.
  void set_parts_of_step(int parts) { parts_of_step_ = parts; }

  std::string description() const override { return "a GPU that is only reckoned"; }
  std::string computes_as() const override { return "nothing"; }
  double seconds() const override { return timeline_.host_seconds(); }

  Buffer allocate(std::size_t bytes) override;
  void upload(std::span<const std::byte> from, void* to) override;
  void download(const void* from, std::span<std::byte> to) override;
  void copy(ConstMatrix from, Matrix to) override;
  void zero(Matrix m) override;
  void sync() override { timeline_.wait(); }
  UploadTicket upload_ahead(std::span<const std::byte> from, void* to) override;
  void await_upload(UploadTicket ticket) override;
  void download_behind(const void* from, std::span<std::byte> to) override;
  void finish_downloads() override { timeline_.finish_downloads(); }
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

  void run(const FindRanges& op) override;
  void run(const RoundLearned& op) override;
  void run(const LearnRounding& op) override;

  // Not reckoned: throw Error.
  void run(const ClusterRows& op) override;
  void run(const DequantizeTable& op) override;
  void run(const RoundingProducts& op) override;
  void run(const CountKeys& op) override;
  void run(const CountLarge& op) override;
  void run(const RemoveOutliers& op) override;
  void run(const PackCodes& op) override;
  void run(const UniformProduct& op) override;
  void run(const TableProduct& op) override;

  // A kernel that reads and writes these, and computes nothing to speak of.
  void pass(const char* name, std::initializer_list<ConstMatrix> read,
            std::initializer_list<ConstMatrix> written, int kernels = 1);
  void multiply(const std::string& name, const Matmul& op);
  void find_bad_groups(const char* name, std::initializer_list<ConstMatrix> read,
                       std::initializer_list<ConstMatrix> written);

  DeviceTimeline timeline_;
  std::uintptr_t next_ = std::uintptr_t{1} << 40;  // an address that nobody has
  std::size_t in_use_ = 0, peak_ = 0;
  std::vector<double> tickets_;
  std::int64_t losses_ = 0;
  int parts_of_step_ = 1;
};
inline constexpr int kStepsToBetter = 8;

}  // namespace roundhouse
