// Plain weights with the quantization baked in: no smaller than the original, but every reader
// loads it, and any recipe fits. In float32 a weight is exact: 11 bits of scale times at most 9
// bits of code.
#include "stages/export/format.h"

namespace roundhouse {
namespace {

class Dense final : public ExportFormat {
 public:
  std::string name() const override { return "dense"; }
  bool has_scheme() const override { return false; }
  void check_schemes(const Recipe&) const override {}
  void check_size(const Recipe&, const LinearSpec&) const override {}

  std::vector<TensorInfo> tensors(const LinearSpec& linear, const LinearScheme&,
                                  DType dtype) const override {
    return {{"weight", dtype, {linear.rows, linear.cols}}};
  }

  std::vector<HostTensor> fill(const QuantizedLinear& linear, DType dtype) const override {
    HostTensor weight(dtype, {linear.rows, linear.cols});
    const auto cols = static_cast<std::size_t>(linear.cols);
    const auto groups = static_cast<std::size_t>(linear.groups());
    const std::size_t row_bytes = cols * size_of(dtype);
    const bool reordered = linear.group_of_column.count() > 0;
    const std::span<const std::uint8_t> codes = linear.codes.as<std::uint8_t>();
    const std::span<const std::uint16_t> scales = linear.scales.as<std::uint16_t>();
    const std::span<const std::uint8_t> zeros = linear.zeros.as<std::uint8_t>();
    std::vector<std::size_t> group_of(cols);
    for (std::size_t col = 0; col < cols; ++col) {
      group_of[col] = reordered
                          ? static_cast<std::size_t>(linear.group_of_column.as<std::int32_t>()[col])
                          : col / static_cast<std::size_t>(linear.group_size);
    }
    std::vector<float> scale(groups), values(cols);
    for (std::size_t row = 0; row < static_cast<std::size_t>(linear.rows); ++row) {
      for (std::size_t group = 0; group < groups; ++group) {
        scale[group] = half_to_float(scales[row * groups + group]);
      }
      for (std::size_t col = 0; col < cols; ++col) {
        const std::size_t group = group_of[col];
        values[col] = value_of(codes[row * cols + col], scale[group], zeros[row * groups + group]);
      }
      convert_finite(linear.name, DType::kF32, values.data(), dtype,
                     weight.bytes().data() + row * row_bytes, cols);
    }
    std::vector<HostTensor> filled;
    filled.push_back(std::move(weight));
    return filled;
  }

  nlohmann::ordered_json quantization_config(const Recipe&,
                                             const std::vector<std::string>&) const override {
    return nullptr;
  }
};

}  // namespace

std::unique_ptr<ExportFormat> make_dense() { return std::make_unique<Dense>(); }

}  // namespace roundhouse
