// What distinguishes one checkpoint format from another: the tensors that a quantized linear becomes, and the config.
// Adding a format: one file here, one line in the table of format.cpp.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include "base/error.h"
#include "model/block/decoder_block.h"
#include "model/checkpoint/safetensors.h"
#include "model/quantized/linear_scheme.h"
#include "model/quantized/quantized_linear.h"
#include "stages/quantize/recipe.h"

namespace roundhouse {

// A linear of the model, before its values are read: all that the shapes of its tensors depend on.
struct ExportedLinear {
  std::string module;  // "model.layers.0.mlp.up_proj"
  LinearSpec spec;
  LinearScheme scheme;
  std::int64_t sparse_entries = 0;

  std::int64_t groups() const {
    return scheme.group_size == -1 ? 1 : spec.cols / scheme.group_size;
  }
};

class ExportFormat {
 public:
  virtual ~ExportFormat() = default;
  virtual std::string name() const = 0;

  // Throws InputError if this linear of this recipe does not fit the layout.
  virtual void check(const Recipe& recipe, const ExportedLinear& linear) const = 0;
  // Whether fill() relies on the scheme: then a linear that differs from it is an error.
  virtual bool has_scheme() const = 0;
  // The tensors of one linear in the order of the file, named within the module: "weight_packed", ...
  // `dtype` is the type of dense weights.
  virtual std::vector<TensorInfo> tensors(const ExportedLinear& linear, DType dtype) const = 0;
  // Their contents, in the same order. Throws Error naming the linear if a value does not fit.
  virtual std::vector<HostTensor> fill(const QuantizedLinear& linear, const ExportedLinear& plan,
                                       DType dtype) const = 0;
  // "quantization_config" of config.json for these linears, which passed check(), in the model's order; `dense_modules` are linears
  // that stay as they are. null: none. Throws Error if they do not fit together.
  virtual nlohmann::ordered_json quantization_config(
      const Recipe& recipe, const std::vector<ExportedLinear>& linears,
      const std::vector<std::string>& dense_modules) const = 0;
  // A further file that holds the same object, or "".
  virtual std::string config_copy() const { return ""; }
};

std::vector<std::string> format_names();
std::unique_ptr<ExportFormat> make_format(const std::string& name);  // throws InputError: unknown

std::unique_ptr<ExportFormat> make_compressed_tensors();
std::unique_ptr<ExportFormat> make_gptq();
std::unique_ptr<ExportFormat> make_awq_gemm();
std::unique_ptr<ExportFormat> make_squeezellm();
std::unique_ptr<ExportFormat> make_dense();

// For fill(): the tensors that a format announces, all zero.
std::vector<HostTensor> empty_tensors(const ExportFormat& format, const ExportedLinear& linear,
                                      DType dtype);
// For check(): what every packed layout of uniform grids asks of a linear. Throws InputError.
void check_packable(const std::string& format, const Recipe& recipe, const ExportedLinear& linear);
// GPTQ's dynamic act-order: groups follow the order in which columns were quantized.
bool is_reordered(const Recipe& recipe);
// Names the place in the config of the recipe's `key`, or of the recipe where that key is not given.
InputError not_exportable(const std::string& format, const Recipe& recipe, const std::string& why,
                          const std::string& key = "");

// base/dtype.h's convert(), but throws Error naming the tensor where a finite value becomes infinite.
void convert_finite(const std::string& tensor, DType from_type, const void* from, DType to_type,
                    void* to, std::size_t n);

}  // namespace roundhouse
