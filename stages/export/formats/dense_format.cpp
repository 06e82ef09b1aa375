// Plain weights with the quantization baked in: no smaller than the original, but every reader
// loads it, and any recipe fits. In float32 a weight is exact: 11 bits of scale times at most 9
// bits of code, or 11 of a table; a sparse part's sum is what this program computes with.
#include "stages/export/format.h"

namespace roundhouse {
namespace {

class Dense final : public ExportFormat {
 public:
  std::string name() const override { return "dense"; }
  bool has_scheme() const override { return false; }
  std::string cannot_hold(const std::string&) const override { return ""; }
  void check_schemes(const Recipe&) const override {}
  void check_size(const Recipe&, const LinearSpec&) const override {}

  std::vector<TensorInfo> tensors(const ExportedLinear& linear, DType dtype) const override {
    return {{"weight", dtype, {linear.spec.rows, linear.spec.cols}}};
  }

  std::vector<HostTensor> fill(const QuantizedLinear& linear, DType dtype) const override {
    HostTensor weight(dtype, {linear.rows, linear.cols});
    const std::size_t row_bytes = static_cast<std::size_t>(linear.cols) * size_of(dtype);
    DequantizedRows rows(linear);
    for (std::int64_t row = 0; row < linear.rows; ++row) {
      const std::span<const float> values = rows.values(row);
      convert_finite(linear.name, DType::kF32, values.data(), dtype,
                     weight.bytes().data() + static_cast<std::size_t>(row) * row_bytes,
                     values.size());
    }
    std::vector<HostTensor> filled;
    filled.push_back(std::move(weight));
    return filled;
  }

  void read(const ExportedLinear& linear, std::span<const HostView> stored, std::int64_t first,
            std::span<float> rows) const override {
    const std::size_t begin = static_cast<std::size_t>(first * linear.spec.cols);
    convert(stored[0].type, stored[0].bytes.data() + begin * size_of(stored[0].type), DType::kF32,
            rows.data(), rows.size());
  }
  void round_row(const QuantizedLinear&, std::int64_t, DType dtype,
                 std::span<float> values) const override {
    std::vector<std::byte> rounded(values.size() * size_of(dtype));
    convert(DType::kF32, values.data(), dtype, rounded.data(), values.size());
    convert(dtype, rounded.data(), DType::kF32, values.data(), values.size());
  }

  nlohmann::ordered_json quantization_config(const Recipe&, const std::vector<ExportedLinear>&,
                                             const std::vector<std::string>&) const override {
    return nullptr;
  }
};

}  // namespace

std::unique_ptr<ExportFormat> make_dense() { return std::make_unique<Dense>(); }

}  // namespace roundhouse
