// What distinguishes one checkpoint format from another: the tensors that a quantized linear becomes, and the config.
// Adding a format: one file in formats/, one line in the table of format.cpp.
#pragma once

#include <memory>
#include <span>
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

  std::int64_t groups() const { return spec.cols / scheme.group_size_for(spec.cols); }
};

class CausalLM;
class Container;
struct ExportedModel;

class ExportFormat {
 public:
  virtual ~ExportFormat() = default;
  virtual std::string name() const = 0;

  // Throws InputError if the layout has no place for something that a linear of this recipe may become (Recipe::schemes), and says
  // which formats have. Needs no model.
  virtual void check_schemes(const Recipe& recipe) const = 0;
  // The same for a linear's size. Precondition: check_schemes().
  virtual void check_size(const Recipe& recipe, const LinearSpec& linear) const = 0;
  // Why it has no place for this one of kOuterLinears, as a quantized linear; "": it has.
  virtual std::string cannot_hold(const std::string& outer_linear) const;
  // The same for the model: formats of Hugging Face directories take all that we read.
  virtual void check_model(const CausalLM& /*model*/, const Recipe& /*recipe*/) const {}
  // Whether quantization_config() speaks of the linears: one that the recipe does not announce is then an error.
  virtual bool has_scheme() const = 0;
  // The tensors of one linear in the order of the file, named within the module: "weight_packed", ...
  // `dtype` is the type of dense weights.
  virtual std::vector<TensorInfo> tensors(const ExportedLinear& linear, DType dtype) const = 0;
  // Their contents, in the same order. Throws Error naming the linear if a value does not fit.
  virtual std::vector<HostTensor> fill(const QuantizedLinear& linear, DType dtype) const = 0;
  // The weights of rows.size() / cols rows from row `first` on, as a reader of the format computes them from what is stored
  // (tensors(), in their order), in float32. Shares nothing with fill(), whose work is checked by it.
  virtual void read(const ExportedLinear& linear, std::span<const HostView> stored,
                    std::int64_t first, std::span<float> rows) const = 0;
  // What read() has to give for a row: `values` are its exact weights. Rounds them where the format does.
  virtual void round_row(const QuantizedLinear& /*linear*/, std::int64_t /*row*/, DType /*dtype*/,
                         std::span<float> /*values*/) const {}
  // "quantization_config" of config.json for these linears, in the model's order; `dense_modules` are linears that stay as they are,
  // "lm_head" first if it does, those of blocks that the recipe skips last. null: none.
  virtual nlohmann::ordered_json quantization_config(
      const Recipe& recipe, const std::vector<ExportedLinear>& linears,
      const std::vector<std::string>& dense_modules) const = 0;
  // A further file that holds the same object, or "".
  virtual std::string config_copy() const { return ""; }
  // Where its tensors are put.
  virtual std::unique_ptr<Container> container(const ExportedModel& exported) const;
};

std::vector<std::string> format_names();
std::unique_ptr<ExportFormat> make_format(const std::string& name);  // throws InputError: unknown

std::unique_ptr<ExportFormat> make_compressed_tensors();
std::unique_ptr<ExportFormat> make_gptq();
std::unique_ptr<ExportFormat> make_awq_gemm();
std::unique_ptr<ExportFormat> make_auto_round();
std::unique_ptr<ExportFormat> make_gguf();
std::unique_ptr<ExportFormat> make_squeezellm();
std::unique_ptr<ExportFormat> make_dense();

// For fill(): the tensors that a format announces for such a linear, all zero.
std::vector<HostTensor> empty_tensors(const ExportFormat& format, const QuantizedLinear& linear,
                                      DType dtype);
// Throws InputError where a linear has a lookup table, or a sparse part.
void check_uniform_grids(const std::string& format, const Recipe& recipe);
// What every packed layout of uniform grids asks of codes, and of a linear's size. Throw InputError.
// `bits`: the widths that it packs, two at least.
void check_packable_grids(const std::string& format, const Recipe& recipe,
                          const std::vector<int>& bits);
void check_packable_size(const std::string& format, const Recipe& recipe, const LinearSpec& linear);
// Names the place in the config of the recipe's `key`, or of the recipe where that key is not given.
// The recipe's key that asks for such linears: `key`, or "overrides".
std::string key_of(const Recipe& recipe, const LinearScheme& scheme, const std::string& key);
InputError not_exportable(const std::string& format, const Recipe& recipe, const std::string& why,
                          const std::string& key = "");

// base/dtype.h's convert(), but throws Error naming the tensor where a finite value becomes infinite.
void convert_finite(const std::string& tensor, DType from_type, const void* from, DType to_type,
                    void* to, std::size_t n);

}  // namespace roundhouse
