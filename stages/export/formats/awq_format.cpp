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

#include <fmt/format.h>

#include "stages/export/format.h"
#include "stages/export/stored.h"
#include "stages/export/transposed.h"

namespace roundhouse {
namespace {

constexpr std::array<std::size_t, 8> kOrder = {0, 2, 4, 6, 1, 3, 5, 7};

class AwqGemm final : public ExportFormat {
 public:
  std::string name() const override { return "awq"; }
  bool has_scheme() const override { return true; }

  void check_schemes(const Recipe& recipe) const override {
    check_packable_grids(name(), recipe, {2, 3, 4, 5, 6, 7, 8});
    for (const LinearScheme& scheme : recipe.schemes) {
      if (scheme.bits != 4) {
        const bool odd = scheme.bits > 4 && scheme.bits < 8;
        throw not_exportable(name(), recipe,
                             fmt::format("it has codes of 4 bits only, not of {}; use the format "
                                         "'compressed-tensors'{} 'dense'",
                                         scheme.bits, odd ? " or" : ", 'gptq' or"),
                             key_of(recipe, scheme, "bits"));
      }
      if (scheme.group_size != recipe.schemes.front().group_size) {
        throw not_exportable(name(), recipe,
                             "linears differ in their groups, and it has one size for all; use the "
                             "format 'compressed-tensors', 'gptq' or 'dense'",
                             key_of(recipe, scheme, "group_size"));
      }
      if (scheme.reordered) {
        throw not_exportable(
            name(), recipe,
            "with act_order: dynamic a column's group is not its place, and it has no "
            "table for that; use act_order: static, or the format 'gptq' or 'dense'",
            "act_order");
      }
    }
  }
  void check_size(const Recipe& recipe, const LinearSpec& linear) const override {
    check_packable_size(name(), recipe, linear);
  }

  std::vector<TensorInfo> tensors(const ExportedLinear& linear, DType) const override {
    const std::int64_t rows = linear.spec.rows, cols = linear.spec.cols;
    return {{"qweight", DType::kI32, {cols, rows / 8}},
            {"qzeros", DType::kI32, {linear.groups(), rows / 8}},
            {"scales", DType::kF16, {linear.groups(), rows}}};
  }

  std::vector<HostTensor> fill(const QuantizedLinear& linear, DType dtype) const override {
    std::vector<HostTensor> filled = empty_tensors(*this, linear, dtype);
    pack(linear.codes, filled[0]);
    pack(linear.zeros, filled[1]);
    transpose_scales(linear, filled[2]);
    return filled;
  }

  void read(const ExportedLinear& linear, std::span<const HostView> stored, std::int64_t first,
            std::span<float> rows) const override {
    // Where the nibble of an output stands in its word.
    constexpr std::array<int, 8> kNibble = {0, 4, 1, 5, 2, 6, 3, 7};
    const std::int64_t cols = linear.spec.cols, outputs = linear.spec.rows;
    const std::int64_t size = cols / linear.groups();
    for (std::size_t i = 0; i < rows.size(); ++i) {
      const std::int64_t row = first + static_cast<std::int64_t>(i) / cols;
      const std::int64_t col = static_cast<std::int64_t>(i) % cols, group = col / size;
      const int shift = 4 * kNibble[row % 8];
      const auto nibble = [&](const HostView& view, std::int64_t line) {
        const auto word = stored_at<std::uint32_t>(view, line * (outputs / 8) + row / 8);
        return static_cast<int>(word >> shift & 15);
      };
      rows[i] = stored_half(stored[2], group * outputs + row) *
                static_cast<float>(nibble(stored[0], col) - nibble(stored[1], group));
    }
  }

  nlohmann::ordered_json quantization_config(
      const Recipe&, const std::vector<ExportedLinear>& linears,
      const std::vector<std::string>& dense_modules) const override {
    const std::int64_t group_size = linears.front().scheme.group_size;
    nlohmann::ordered_json config = {
        {"quant_method", "awq"},    {"version", "gemm"},  {"bits", 4},
        {"group_size", group_size}, {"zero_point", true}, {"modules_to_not_convert", nullptr}};
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
