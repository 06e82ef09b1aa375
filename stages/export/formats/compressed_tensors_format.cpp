// compressed-tensors, "pack-quantized". Codes are packed along the inputs, row by row; zero points along the outputs:
//
//   weight_packed      I32 [rows, cols bits / 32]    row n: stream of the codes of columns 0, 1, ...
//   weight_scale       F16 [rows, groups]
//   weight_zero_point  I32 [rows bits / 32, groups]  group g: stream of the zero points of rows 0, 1, ...; asymmetric only
//   weight_shape       I64 [2]                       rows, cols
//
// The library computes with signed codes; it stores code + 2^(bits-1), which is our code.
#include <algorithm>

#include <fmt/format.h>

#include "model/quantized/bitstream.h"
#include "stages/export/format.h"
#include "stages/export/stored.h"

namespace roundhouse {
namespace {

// The release whose layout this is: older ones pack 3-bit codes ten to a word, with two idle bits.
constexpr const char* kVersion = "0.18.0";

class CompressedTensors final : public ExportFormat {
 public:
  std::string name() const override { return "compressed-tensors"; }
  bool has_scheme() const override { return true; }
  std::string cannot_hold(const std::string& outer_linear) const override {
    return outer_linear == kOuterLinears.back() ? "" : ExportFormat::cannot_hold(outer_linear);
  }

  void check_schemes(const Recipe& recipe) const override {
    check_packable_grids(name(), recipe, {2, 3, 4, 5, 6, 7, 8});
    if (std::ranges::any_of(recipe.schemes, &LinearScheme::reordered)) {
      throw not_exportable(
          name(), recipe,
          "with act_order: dynamic a column's group is not its place, and readers of this format "
          "refuse such a table; use act_order: static, or the format 'gptq' or 'dense'",
          "act_order");
    }
  }
  void check_size(const Recipe& recipe, const LinearSpec& linear) const override {
    check_packable_size(name(), recipe, linear);
  }

  std::vector<TensorInfo> tensors(const ExportedLinear& linear, DType) const override {
    const std::int64_t rows = linear.spec.rows, cols = linear.spec.cols;
    const int bits = linear.scheme.bits;
    std::vector<TensorInfo> tensors = {{"weight_packed", DType::kI32, {rows, cols * bits / 32}},
                                       {"weight_scale", DType::kF16, {rows, linear.groups()}}};
    if (!is_symmetric(linear.scheme.grid)) {
      tensors.push_back({"weight_zero_point", DType::kI32, {rows * bits / 32, linear.groups()}});
    }
    tensors.push_back({"weight_shape", DType::kI64, {2}});
    return tensors;
  }

  std::vector<HostTensor> fill(const QuantizedLinear& linear, DType dtype) const override {
    std::vector<HostTensor> filled = empty_tensors(*this, linear, dtype);
    pack_rows(linear.codes, linear.bits, filled.front());
    std::ranges::copy(linear.scales.bytes(), filled[1].bytes().begin());
    if (!is_symmetric(linear.grid)) pack_zeros(linear, filled[2]);
    const std::span<std::int64_t> shape = filled.back().as<std::int64_t>();
    shape[0] = linear.rows;
    shape[1] = linear.cols;
    return filled;
  }

  void read(const ExportedLinear& linear, std::span<const HostView> stored, std::int64_t first,
            std::span<float> rows) const override {
    const int bits = linear.scheme.bits;
    const std::int64_t cols = linear.spec.cols, groups = linear.groups(), size = cols / groups;
    const std::int64_t words = stored[0].shape[1];
    const bool symmetric = is_symmetric(linear.scheme.grid);
    if (stored_at<std::int64_t>(stored.back(), 0) != linear.spec.rows ||
        stored_at<std::int64_t>(stored.back(), 1) != cols) {
      throw Error("weight_shape: not the shape of the weight");
    }
    for (std::size_t i = 0; i < rows.size(); ++i) {
      const std::int64_t row = first + static_cast<std::int64_t>(i) / cols;
      const std::int64_t col = static_cast<std::int64_t>(i) % cols, group = col / size;
      const int code = stored_field(stored[0], row * words, 1, col, bits);
      const int zero =
          symmetric ? 1 << (bits - 1) : stored_field(stored[2], group, groups, row, bits);
      rows[i] = stored_half(stored[1], row * groups + group) * static_cast<float>(code - zero);
    }
  }

  // One group of modules for each scheme. With more than one each names its modules, and none says "Linear": a reader that fuses
  // modules would take that for all of them.
  nlohmann::ordered_json quantization_config(
      const Recipe&, const std::vector<ExportedLinear>& linears,
      const std::vector<std::string>& dense_modules) const override {
    std::vector<nlohmann::ordered_json> schemes;
    std::vector<nlohmann::ordered_json> targets;  // by scheme
    for (const ExportedLinear& linear : linears) {
      const nlohmann::ordered_json weights = weights_of(linear.scheme);
      const auto found = std::ranges::find(schemes, weights);
      const auto at = static_cast<std::size_t>(found - schemes.begin());
      if (found == schemes.end()) {
        schemes.push_back(weights);
        targets.push_back(nlohmann::ordered_json::array());
      }
      targets[at].push_back(linear.module);
    }
    if (schemes.size() == 1) {
      // Engines have a class of their own for the head.
      const bool head = targets[0].back() == kOuterLinears.back();
      targets = {nlohmann::ordered_json::array({"Linear"})};
      if (head) targets[0].push_back(kOuterLinears.back());
    }
    nlohmann::ordered_json groups = nlohmann::ordered_json::object();
    for (std::size_t i = 0; i < schemes.size(); ++i) {
      groups[fmt::format("group_{}", i)] = {{"targets", targets[i]},
                                            {"weights", schemes[i]},
                                            {"input_activations", nullptr},
                                            {"output_activations", nullptr}};
    }
    return {{"quant_method", "compressed-tensors"},
            {"format", "pack-quantized"},
            {"quantization_status", "compressed"},
            {"config_groups", groups},
            {"ignore", dense_modules},
            {"kv_cache_scheme", nullptr},
            {"global_compression_ratio", nullptr},
            {"version", kVersion}};
  }

 private:
  static nlohmann::ordered_json weights_of(const LinearScheme& scheme) {
    const bool by_row = scheme.group_size == -1;
    nlohmann::ordered_json weights = {{"num_bits", scheme.bits},
                                      {"type", "int"},
                                      {"symmetric", is_symmetric(scheme.grid)},
                                      {"strategy", by_row ? "channel" : "group"},
                                      {"group_size", nullptr},
                                      {"dynamic", false},
                                      {"actorder", nullptr},
                                      {"block_structure", nullptr},
                                      {"observer", "minmax"},
                                      {"observer_kwargs", nlohmann::ordered_json::object()}};
    if (!by_row) weights["group_size"] = scheme.group_size;
    return weights;
  }

  static void pack_zeros(const QuantizedLinear& linear, HostTensor& packed) {
    const auto rows = static_cast<std::size_t>(linear.rows);
    const auto groups = static_cast<std::size_t>(linear.groups());
    const std::span<const std::uint8_t> zeros = linear.zeros.as<std::uint8_t>();
    const std::span<std::uint32_t> out = packed.as<std::uint32_t>();
    std::vector<std::uint32_t> stream(packed_words(rows, linear.bits));
    for (std::size_t group = 0; group < groups; ++group) {
      pack_bits(zeros.data() + group, rows, groups, linear.bits, stream.data());
      for (std::size_t word = 0; word < stream.size(); ++word)
        out[word * groups + group] = stream[word];
    }
  }
};

}  // namespace

std::unique_ptr<ExportFormat> make_compressed_tensors() {
  return std::make_unique<CompressedTensors>();
}

}  // namespace roundhouse
