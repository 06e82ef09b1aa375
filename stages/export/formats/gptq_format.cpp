// GPTQ checkpoints. Everything is transposed: outputs run along a row of the file.
//
//   qweight  I32 [cols bits / 32, rows]    column n: stream of the codes of inputs 0, 1, ... of output n
//   qzeros   I32 [groups, rows bits / 32]  row g: stream of the zero points of outputs 0, 1, ...
//   scales   F16 [groups, rows]
//   g_idx    I32 [cols]                    the group of each input, in the original order of inputs
//
// Version 1 ("gptq") stores zero point - 1, and kernels disagree on what 0 then becomes. Symmetric
// grids have 2^(bits-1) everywhere, which is safe; asymmetric ones are written as version 2
// ("gptq_v2"), which stores it as it is.
#include <algorithm>

#include "model/quantized/bitstream.h"
#include "stages/export/format.h"

namespace roundhouse {
namespace {

class Gptq final : public ExportFormat {
 public:
  std::string name() const override { return "gptq"; }
  bool has_scheme() const override { return true; }
  std::string config_copy() const override { return "quantize_config.json"; }

  void check_schemes(const Recipe& recipe) const override { check_packable_bits(name(), recipe); }
  void check_size(const Recipe& recipe, const LinearSpec& linear) const override {
    check_packable_size(name(), recipe, linear);
  }

  std::vector<TensorInfo> tensors(const LinearSpec& linear, const LinearScheme& scheme,
                                  DType) const override {
    const std::int64_t groups = linear.cols / scheme.group_size_for(linear.cols);
    return {{"qweight", DType::kI32, {linear.cols * scheme.bits / 32, linear.rows}},
            {"qzeros", DType::kI32, {groups, linear.rows * scheme.bits / 32}},
            {"scales", DType::kF16, {groups, linear.rows}},
            {"g_idx", DType::kI32, {linear.cols}}};
  }

  std::vector<HostTensor> fill(const QuantizedLinear& linear, DType dtype) const override {
    std::vector<HostTensor> filled;
    for (const TensorInfo& info :
         tensors({linear.name, linear.rows, linear.cols}, scheme_of(linear), dtype)) {
      filled.emplace_back(info.type, info.shape);
    }
    pack_codes(linear, filled[0]);
    pack_zeros(linear, filled[1]);
    transpose_scales(linear, filled[2]);
    const std::span<std::int32_t> group_of = filled[3].as<std::int32_t>();
    if (linear.group_of_column.count() > 0) {
      std::ranges::copy(linear.group_of_column.as<std::int32_t>(), group_of.begin());
    } else {
      for (std::size_t col = 0; col < group_of.size(); ++col) {
        group_of[col] =
            static_cast<std::int32_t>(static_cast<std::int64_t>(col) / linear.group_size);
      }
    }
    return filled;
  }

  nlohmann::ordered_json quantization_config(const Recipe& recipe,
                                             const std::vector<std::string>&) const override {
    const LinearScheme& scheme = one_grid(name(), recipe);
    const bool symmetric = is_symmetric(scheme.grid);
    const char* version = symmetric ? "gptq" : "gptq_v2";
    nlohmann::ordered_json config = {
        {"quant_method", "gptq"},       {"bits", scheme.bits}, {"group_size", scheme.group_size},
        {"desc_act", scheme.reordered}, {"sym", symmetric},    {"lm_head", false},
        {"checkpoint_format", version}, {"format", version},   {"pack_dtype", "int32"}};
    // What readers show, and compute nothing with.
    if (recipe.options.contains("true_sequential"))
      config["true_sequential"] = recipe.options["true_sequential"];
    const double damping = recipe.options.value("damping", 0.0);
    if (damping > 0 && damping < 1) config["damp_percent"] = damping;  // transformers refuses 0, 1
    return config;
  }

 private:
  // A stream of the file is a row of codes: packed where it lies, then its words are spread over a
  // column. Sixteen rows at a time, so that a whole cache line of the file is written at once.
  static void pack_codes(const QuantizedLinear& linear, HostTensor& packed) {
    constexpr std::size_t kTogether = 16;
    const auto rows = static_cast<std::size_t>(linear.rows);
    const auto cols = static_cast<std::size_t>(linear.cols);
    const std::size_t words = packed_words(cols, linear.bits);
    const std::span<const std::uint8_t> codes = linear.codes.as<std::uint8_t>();
    const std::span<std::uint32_t> out = packed.as<std::uint32_t>();
    std::vector<std::uint32_t> streams(kTogether * words);
    for (std::size_t first = 0; first < rows; first += kTogether) {
      const std::size_t n = std::min(kTogether, rows - first);
      for (std::size_t i = 0; i < n; ++i) {
        pack_bits(codes.data() + (first + i) * cols, cols, 1, linear.bits,
                  streams.data() + i * words);
      }
      for (std::size_t word = 0; word < words; ++word) {
        for (std::size_t i = 0; i < n; ++i)
          out[word * rows + first + i] = streams[i * words + word];
      }
    }
  }

  static void pack_zeros(const QuantizedLinear& linear, HostTensor& packed) {
    const auto rows = static_cast<std::size_t>(linear.rows);
    const auto groups = static_cast<std::size_t>(linear.groups());
    const std::size_t words = packed_words(rows, linear.bits);
    std::vector<std::uint8_t> stored(linear.zeros.as<std::uint8_t>().begin(),
                                     linear.zeros.as<std::uint8_t>().end());
    if (is_symmetric(linear.grid)) {
      for (std::uint8_t& zero : stored) --zero;
    }
    const std::span<std::uint32_t> out = packed.as<std::uint32_t>();
    for (std::size_t group = 0; group < groups; ++group) {
      pack_bits(stored.data() + group, rows, groups, linear.bits, out.data() + group * words);
    }
  }

  static void transpose_scales(const QuantizedLinear& linear, HostTensor& transposed) {
    const auto rows = static_cast<std::size_t>(linear.rows);
    const auto groups = static_cast<std::size_t>(linear.groups());
    const std::span<const std::uint16_t> from = linear.scales.as<std::uint16_t>();
    const std::span<std::uint16_t> to = transposed.as<std::uint16_t>();
    for (std::size_t group = 0; group < groups; ++group) {
      for (std::size_t row = 0; row < rows; ++row)
        to[group * rows + row] = from[row * groups + group];
    }
  }
};

}  // namespace

std::unique_ptr<ExportFormat> make_gptq() { return std::make_unique<Gptq>(); }

}  // namespace roundhouse
