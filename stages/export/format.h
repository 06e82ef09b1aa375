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
#include "model/quantized/quantized_linear.h"
#include "stages/quantize/recipe.h"

namespace roundhouse {

// What every linear of an export has in common, and all that the shapes of its tensors depend on.
struct Scheme {
  int bits = 4;
  std::int64_t group_size = -1;  // -1: the whole row
  bool symmetric = false;        // every zero point is 2^(bits-1)
  bool reordered = false;  // a column's group is not column / group_size: the layout needs a table
  std::vector<std::string> dense_modules = {"lm_head"};  // linears that stay as they are
};

class ExportFormat {
 public:
  virtual ~ExportFormat() = default;
  virtual std::string name() const = 0;

  // Throws InputError if the linears of this recipe do not fit the layout.
  virtual void check(const Recipe& recipe, const LinearSpec& linear) const = 0;
  // Whether fill() relies on the scheme: then a linear that differs from it is an error.
  virtual bool has_scheme() const = 0;
  // The tensors of one linear in the order of the file, named within the module: "weight_packed", ...
  // `dtype` is the type of dense weights.
  virtual std::vector<TensorInfo> tensors(const LinearSpec& linear, const Scheme& scheme,
                                          DType dtype) const = 0;
  // Their contents, in the same order. Throws Error naming the linear if a value does not fit.
  virtual std::vector<HostTensor> fill(const QuantizedLinear& linear, const Scheme& scheme,
                                       DType dtype) const = 0;
  // "quantization_config" of config.json; null: none.
  virtual nlohmann::ordered_json quantization_config(const Recipe& recipe,
                                                     const Scheme& scheme) const = 0;
  // A further file that holds the same object, or "".
  virtual std::string config_copy() const { return ""; }
};

std::vector<std::string> format_names();
std::unique_ptr<ExportFormat> make_format(const std::string& name);  // throws InputError: unknown

std::unique_ptr<ExportFormat> make_compressed_tensors();
std::unique_ptr<ExportFormat> make_gptq();
std::unique_ptr<ExportFormat> make_awq_gemm();
std::unique_ptr<ExportFormat> make_dense();

// For check(): what every packed layout asks of a linear. Throws InputError.
void check_packable(const std::string& format, const Recipe& recipe, const LinearSpec& linear);
// Names the place in the config of the recipe's `key`, or of the recipe where that key is not given.
InputError not_exportable(const std::string& format, const Recipe& recipe, const std::string& why,
                          const std::string& key = "");

// base/dtype.h's convert(), but throws Error naming the tensor where a finite value becomes infinite.
void convert_finite(const std::string& tensor, DType from_type, const void* from, DType to_type,
                    void* to, std::size_t n);

}  // namespace roundhouse
