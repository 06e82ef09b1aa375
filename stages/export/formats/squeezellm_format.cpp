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
#include "stages/export/format.h"
#include "stages/export/transposed.h"

namespace roundhouse {
namespace {

class SqueezeLlm final : public ExportFormat {
 public:
  std::string name() const override { return "squeezellm"; }
  bool has_scheme() const override { return true; }

  void check(const Recipe& recipe, const ExportedLinear& linear) const override {
    if (linear.scheme.kind != LinearScheme::Kind::kTable) {
      throw not_exportable(
          name(), recipe,
          linear.spec.name + " is on a uniform grid, and it holds lookup tables " + "only; " +
              (linear.scheme.sparse ? "with a sparse part the format 'dense' alone can hold it"
                                    : "use the format 'compressed-tensors', 'gptq' or 'dense'"));
    }
    if (linear.spec.cols % 32 != 0) {
      throw not_exportable(
          name(), recipe,
          linear.spec.name + " has " + std::to_string(linear.spec.cols) +
              " columns, and it packs 32 at a time; the format 'dense' can hold it");
    }
  }

  std::vector<TensorInfo> tensors(const ExportedLinear& linear, DType) const override {
    const auto& [unused, rows, cols] = linear.spec;
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

  std::vector<HostTensor> fill(const QuantizedLinear& linear, const ExportedLinear& plan,
                               DType dtype) const override {
    std::vector<HostTensor> filled = empty_tensors(*this, plan, dtype);
    const auto widen = [](const HostTensor& from, HostTensor& to) {
      convert(from.type(), from.bytes().data(), to.type(), to.bytes().data(),
              static_cast<std::size_t>(from.count()));
    };
    pack_transposed(linear, filled[0]);
    widen(linear.table, filled[1]);
    if (plan.scheme.sparse) {
      filled[2] = linear.sparse.offsets;
      filled[3] = linear.sparse.columns;
      widen(linear.sparse.values, filled[4]);
    }
    return filled;
  }

  // No reader knows a config of it: these are the names that the authors' own loader takes on its command line.
  nlohmann::ordered_json quantization_config(
      const Recipe&, const std::vector<ExportedLinear>& linears,
      const std::vector<std::string>& dense_modules) const override {
    const LinearScheme& scheme = linears.front().scheme;
    bool sparse = false;
    for (const ExportedLinear& linear : linears) {
      sparse |= linear.scheme.sparse;
      if (linear.scheme.bits != scheme.bits) {
        throw Error(linear.module + ": its width differs from that of " + linears.front().module +
                    ", and the format squeezellm has one for all; the format 'dense' can hold it");
      }
    }
    return {{"quant_method", "squeezellm"},
            {"wbits", scheme.bits},
            {"include_sparse", sparse},
            {"modules_to_not_convert", dense_modules}};
  }
};

}  // namespace

std::unique_ptr<ExportFormat> make_squeezellm() { return std::make_unique<SqueezeLlm>(); }

}  // namespace roundhouse
