// GGUF, for llama.cpp and what is built on it: blocks of weights (gguf_blocks.h) in a file that has the tokenizer, too
// (containers/gguf_container.cpp).
//
//   weight  U8 [rows, bytes of a row]  blocks of 32 or 256 columns
#include <algorithm>

#include <fmt/format.h>

#include "stages/export/containers/gguf_container.h"
#include "stages/export/formats/gguf_blocks.h"

namespace roundhouse {
namespace {

class Gguf final : public ExportFormat {
 public:
  std::string name() const override { return "gguf"; }
  bool has_scheme() const override { return true; }
  std::string cannot_hold(const std::string&) const override { return ""; }

  void check_schemes(const Recipe& recipe) const override {
    const auto refuse = [&](const std::string& why, const char* key = "") {
      throw not_exportable(name(), recipe, why, key);
    };
    if (recipe.skips()) {
      refuse(
          "some linears stay as they are, whose rows it may want in another order; use another "
          "format",
          "overrides");
    }
    check_uniform_grids(name(), recipe);
    for (const LinearScheme& scheme : recipe.schemes) {
      if (scheme.reordered) {
        refuse(
            "with act_order: dynamic a block's columns are in several groups, and it has one scale "
            "for all; use act_order: static, or the format 'gptq' or 'dense'",
            "act_order");
      }
      if (scheme.group_size != -1 && (scheme.group_size < 1 || scheme.group_size % 32 != 0)) {
        refuse(fmt::format("its blocks have 32 columns, of which groups of {} are no multiple; use "
                           "group_size: 32, 64, 128, 256 or -1, or another format",
                           scheme.group_size),
               "group_size");
      }
      if (scheme.bits == 8 && !is_symmetric(scheme.grid)) {
        refuse(
            "a code of 8 bits less its zero point needs 9 bits, and its blocks have 8; use "
            "symmetric: true, or another format",
            "symmetric");
      }
    }
  }
  void check_size(const Recipe& recipe, const LinearSpec& linear) const override {
    for (const LinearScheme& scheme : recipe.schemes) {
      if (block_type_for(scheme, linear.cols)) continue;
      throw not_exportable(
          name(), recipe,
          fmt::format(
              "{} has {} columns, which are no multiple of {}; the format 'dense' can hold it",
              linear.name, linear.cols,
              scheme.group_size == -1 ? "32" : fmt::format("its groups' {}", scheme.group_size)),
          "group_size");
    }
  }
  void check_model(const CausalLM& model, const Recipe& recipe) const override {
    const std::vector<ExportedLinear> none;
    check_gguf_model({.model = model, .recipe = recipe, .format = *this, .linears = none});
  }

  std::vector<TensorInfo> tensors(const ExportedLinear& linear, DType) const override {
    const GgmlBlock block = block_of(type_of(linear));
    return {
        {"weight", DType::kU8, {linear.spec.rows, linear.spec.cols / block.weights * block.bytes}}};
  }

  std::vector<HostTensor> fill(const QuantizedLinear& linear, DType) const override {
    std::vector<HostTensor> filled;
    filled.push_back(pack_blocks(linear, block_type_for(scheme_of(linear), linear.cols).value()));
    return filled;
  }

  void read(const ExportedLinear& linear, std::span<const HostView> stored, std::int64_t first,
            std::span<float> rows) const override {
    const GgmlType type = type_of(linear);
    const GgmlBlock block = block_of(type);
    const std::byte* at = stored.front().bytes.data() + first * stored.front().shape[1];
    for (std::size_t i = 0; i < rows.size(); ++i) {
      const auto index = static_cast<std::int64_t>(i);
      rows[i] = weight_in_block(at + index / block.weights * block.bytes, type,
                                static_cast<int>(index % block.weights));
    }
  }

  nlohmann::ordered_json quantization_config(const Recipe&, const std::vector<ExportedLinear>&,
                                             const std::vector<std::string>&) const override {
    return nullptr;
  }
  std::unique_ptr<Container> container(const ExportedModel& exported) const override {
    return make_gguf_container(exported);
  }

 private:
  static GgmlType type_of(const ExportedLinear& linear) {
    return block_type_for(linear.scheme, linear.spec.cols).value();
  }
};

}  // namespace

std::unique_ptr<ExportFormat> make_gguf() { return std::make_unique<Gguf>(); }

}  // namespace roundhouse
