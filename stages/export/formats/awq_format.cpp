// AWQ checkpoints, version "gemm": 4 bits only. Everything is transposed, and eight outputs share a word:
//
//   qweight  I32 [cols, rows / 8]    row k: the codes of input k
//   qzeros   I32 [groups, rows / 8]  row g: the zero points of group g
//   scales   F16 [groups, rows]
//
// Nibble i of a word (bits 4i .. 4i + 3) holds output 8 word + kOrder[i], the order in which the authors' kernel unpacks them. Codes
// 0 .. 7 of eight outputs make the word 0x75316420. Zero points are stored as they are, on symmetric grids too (8): some readers
// refuse files without them.
#include <array>
#include <cstddef>

#include "stages/export/format.h"

namespace roundhouse {
namespace {

constexpr std::array<std::size_t, 8> kOrder = {0, 2, 4, 6, 1, 3, 5, 7};

class AwqGemm final : public ExportFormat {
 public:
  std::string name() const override { return "awq"; }
  bool has_scheme() const override { return true; }

  void check_schemes(const Recipe& recipe) const override {
    const LinearScheme& scheme = one_grid(name(), recipe);
    if (scheme.bits != 4) {
      throw not_exportable(name(), recipe,
                           "it has codes of 4 bits only, not of " + std::to_string(scheme.bits) +
                               "; use the format 'compressed-tensors', 'gptq' or 'dense'",
                           "bits");
    }
    if (scheme.reordered) {
      throw not_exportable(
          name(), recipe,
          "with act_order: dynamic a column's group is not its place, and it has no "
          "table for that; use act_order: static, or the format 'gptq' or 'dense'",
          "act_order");
    }
  }
  void check_size(const Recipe& recipe, const LinearSpec& linear) const override {
    check_packable_size(name(), recipe, linear);
  }

  std::vector<TensorInfo> tensors(const LinearSpec& linear, const LinearScheme& scheme,
                                  DType) const override {
    const std::int64_t groups = linear.cols / scheme.group_size_for(linear.cols);
    return {{"qweight", DType::kI32, {linear.cols, linear.rows / 8}},
            {"qzeros", DType::kI32, {groups, linear.rows / 8}},
            {"scales", DType::kF16, {groups, linear.rows}}};
  }

  std::vector<HostTensor> fill(const QuantizedLinear& linear, DType dtype) const override {
    std::vector<HostTensor> filled;
    for (const TensorInfo& info :
         tensors({linear.name, linear.rows, linear.cols}, scheme_of(linear), dtype)) {
      filled.emplace_back(info.type, info.shape);
    }
    pack(linear.codes, filled[0]);
    pack(linear.zeros, filled[1]);
    const auto rows = static_cast<std::size_t>(linear.rows);
    const auto groups = static_cast<std::size_t>(linear.groups());
    const std::span<const std::uint16_t> from = linear.scales.as<std::uint16_t>();
    const std::span<std::uint16_t> to = filled[2].as<std::uint16_t>();
    for (std::size_t group = 0; group < groups; ++group) {
      for (std::size_t row = 0; row < rows; ++row)
        to[group * rows + row] = from[row * groups + group];
    }
    return filled;
  }

  nlohmann::ordered_json quantization_config(
      const Recipe& recipe, const std::vector<std::string>& dense_modules) const override {
    const LinearScheme& scheme = one_grid(name(), recipe);
    nlohmann::ordered_json config = {{"quant_method", "awq"}, {"version", "gemm"},
                                     {"bits", scheme.bits},   {"group_size", scheme.group_size},
                                     {"zero_point", true},    {"modules_to_not_convert", nullptr}};
    // Readers spare the head by themselves.
    if (dense_modules.size() > 1) config["modules_to_not_convert"] = dense_modules;
    return config;
  }

 private:
  // from: U8 [rows, n], to: I32 [n, rows / 8]. Sixteen words of a row of the file at a time, so that a whole cache line of it is
  // written at once.
  static void pack(const HostTensor& from, HostTensor& to) {
    constexpr std::size_t kTogether = 16;
    const auto rows = static_cast<std::size_t>(from.shape()[0]);
    const auto n = static_cast<std::size_t>(from.shape()[1]), words = rows / 8;
    const std::span<const std::uint8_t> codes = from.as<std::uint8_t>();
    const std::span<std::uint32_t> out = to.as<std::uint32_t>();
    for (std::size_t first = 0; first < words; first += kTogether) {
      for (std::size_t k = 0; k < n; ++k) {
        for (std::size_t word = first; word < std::min(words, first + kTogether); ++word) {
          std::uint32_t packed = 0;
          for (std::size_t i = 0; i < kOrder.size(); ++i) {
            packed |= std::uint32_t{codes[(8 * word + kOrder[i]) * n + k]} << (4 * i);
          }
          out[k * words + word] = packed;
        }
      }
    }
  }
};

}  // namespace

std::unique_ptr<ExportFormat> make_awq_gemm() { return std::make_unique<AwqGemm>(); }

}  // namespace roundhouse
