// The layout of SqueezeLLM's authors, of lookup tables with or without a sparse part, in safetensors in place of a pickle:
//
//   qweight       I32 [cols bits / 32, rows]  column n: stream of the codes of inputs 0, 1, ... of output n
//   lookup_table  F32 [rows, 2^bits]
//
// and with a sparse part, by compressed rows of outputs
//
//   rows          I32 [rows + 1]
//   cols          I32 [entries]
//   vals          F32 [entries]
//
// W[n, k] = lookup_table[n, code[n, k]] + (rows, cols, vals)[n, k]. Tables and values are float16 in float32, so exact.
#include <algorithm>

#include <fmt/format.h>

#include "stages/export/format.h"
#include "stages/export/stored.h"
#include "stages/export/transposed.h"

namespace roundhouse {
namespace {

class SqueezeLlm final : public ExportFormat {
 public:
  std::string name() const override { return "squeezellm"; }
  bool has_scheme() const override { return true; }

  void check_schemes(const Recipe& recipe) const override {
    for (const LinearScheme& scheme : recipe.schemes) {
      if (scheme.kind != LinearScheme::Kind::kTable) {
        throw not_exportable(
            name(), recipe,
            std::string(
                "it has uniform grids, and this format lookup tables only; use the format ") +
                (scheme.sparse ? "'dense', which alone holds a grid's sparse part"
                               : "'compressed-tensors', 'gptq' or 'dense'"));
      }
      if (scheme.bits != recipe.schemes.front().bits) {
        throw not_exportable(name(), recipe,
                             "linears differ in bits, and it has one width for all; the format "
                             "'dense' can hold it",
                             key_of(recipe, scheme, "bits"));
      }
    }
  }
  void check_size(const Recipe& recipe, const LinearSpec& linear) const override {
    if (linear.cols % 32 == 0) return;
    throw not_exportable(name(), recipe,
                         fmt::format("{} has {} columns, and it packs 32 at a time; the format "
                                     "'dense' can hold it",
                                     linear.name, linear.cols));
  }

  std::vector<TensorInfo> tensors(const ExportedLinear& linear, DType) const override {
    const std::int64_t rows = linear.spec.rows, cols = linear.spec.cols;
    const int bits = linear.scheme.bits;
    std::vector<TensorInfo> tensors = {
        {"qweight", DType::kI32, {cols * bits / 32, rows}},
        {"lookup_table", DType::kF32, {rows, std::int64_t{1} << bits}}};
    if (linear.scheme.sparse) {
      tensors.push_back({"rows", DType::kI32, {rows + 1}});
      tensors.push_back({"cols", DType::kI32, {linear.sparse_entries}});
      tensors.push_back({"vals", DType::kF32, {linear.sparse_entries}});
    }
    return tensors;
  }

  std::vector<HostTensor> fill(const QuantizedLinear& linear, DType dtype) const override {
    std::vector<HostTensor> filled = empty_tensors(*this, linear, dtype);
    const auto widen = [](const HostTensor& from, HostTensor& to) {
      convert(from.type(), from.bytes().data(), to.type(), to.bytes().data(),
              static_cast<std::size_t>(from.count()));
    };
    pack_transposed(linear, filled[0]);
    widen(linear.table, filled[1]);
    if (!linear.sparse.empty()) {
      filled[2] = linear.sparse.offsets;
      filled[3] = linear.sparse.columns;
      widen(linear.sparse.values, filled[4]);
    }
    return filled;
  }

  void read(const ExportedLinear& linear, std::span<const HostView> stored, std::int64_t first,
            std::span<float> rows) const override {
    const int bits = linear.scheme.bits;
    const std::int64_t cols = linear.spec.cols, outputs = linear.spec.rows;
    for (std::size_t i = 0; i < rows.size(); ++i) {
      const std::int64_t row = first + static_cast<std::int64_t>(i) / cols;
      const int code =
          stored_field(stored[0], row, outputs, static_cast<std::int64_t>(i) % cols, bits);
      rows[i] = stored_at<float>(stored[1], (row << bits) + code);
    }
    if (!linear.scheme.sparse) return;
    for (std::int64_t row = first; (row - first) * cols < std::ssize(rows); ++row) {
      const auto end =
          std::min<std::int64_t>(stored_at<std::int32_t>(stored[2], row + 1), stored[3].shape[0]);
      for (std::int64_t entry = std::max(0, stored_at<std::int32_t>(stored[2], row)); entry < end;
           ++entry) {
        const std::int64_t col = stored_at<std::int32_t>(stored[3], entry);
        if (col < 0 || col >= cols) continue;  // the sum is another then
        rows[(row - first) * cols + col] += stored_at<float>(stored[4], entry);
      }
    }
  }

  // No reader knows a config of it: these are the names that the authors' own loader takes on its command line.
  nlohmann::ordered_json quantization_config(
      const Recipe&, const std::vector<ExportedLinear>& linears,
      const std::vector<std::string>& dense_modules) const override {
    const bool sparse = std::ranges::any_of(
        linears, [](const ExportedLinear& linear) { return linear.scheme.sparse; });
    return {{"quant_method", "squeezellm"},
            {"wbits", linears.front().scheme.bits},
            {"include_sparse", sparse},
            {"modules_to_not_convert", dense_modules}};
  }
};

}  // namespace

std::unique_ptr<ExportFormat> make_squeezellm() { return std::make_unique<SqueezeLlm>(); }

}  // namespace roundhouse
