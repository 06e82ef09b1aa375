// One decoder block of an architecture: its linears, and its forward pass cut at the inputs of the linears.
//
// The linears of a block fall into groups that read the same input, in the order in which data flows. LLaMA:
//
//   group  linears      input                            after apply()
//   0      q, k, v      RMSNorm(residual)                input = attention output
//   1      o            attention output                 residual += o(input)
//   2      gate, up     RMSNorm(residual)                input = silu(gate) * up
//   3      down         silu(gate) * up                  residual += down(input)
//
// A method that needs the input of each group (GPTQ's Hessians, AWQ's activation means) walks the groups:
//   prepare(0); use state.input; apply(0); prepare(1); use state.input; apply(1); ...
// Each apply() either makes the next group's input, which is then not `from_residual`, or changes the residual, never both.
// The walk may stop between any two: what must be kept is `residual` and, if the next group is not `from_residual`, `input`.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "kernels/backend.h"
#include "model/checkpoint/checkpoint.h"
#include "model/model_config.h"

namespace roundhouse {

// Linears outside the blocks, as recipes call them, in the order in which data flows; the last is the head.
inline constexpr std::array<const char*, 2> kOuterLinears = {"embed_tokens", "lm_head"};

struct LinearSpec {
  std::string name;   // within the block, e.g. "self_attn.q_proj"
  std::int64_t rows;  // outputs
  std::int64_t cols;  // inputs
  bool biased = false;
};

// A norm's weight, or its bias.
struct NormSpec {
  std::string name;     // within the block, e.g. "input_layernorm.weight"
  std::int64_t size;    // values
  float offset = 0.0f;  // what the block adds to them: RmsNorm::offset
};

struct SharedInput {
  std::string name;          // for messages: "q_proj, k_proj, v_proj"
  std::vector<int> linears;  // indices into DecoderBlock::linears()
  std::int64_t cols;         // width of the input
  bool from_residual;        // prepare() computes the input from the residual
};

// Input columns that may be multiplied with a vector s if what makes the input is divided by s: the block's output stays
// what it was, W x = (W diag(s)) (diag(1/s) x). What AWQ searches; its table of these sets is llm-awq's.
struct ScaleSet {
  int group;       // whose linears share s: an index into shared_inputs()
  int last_group;  // the outputs of `group`, or of the module from it to here, are what a good s keeps
  std::vector<int>
      norms;  // these tensors are divided by s: a norm's weight, then its bias; indices into norms()
  int linear = -1;  // or the last rows (and of the bias) of this linear: an index into linears()
};

// Weights of one block in a backend's memory, in its activation type. Quantizing replaces linears one by one.
struct BlockWeights {
  std::vector<Tensor> linears;  // by DecoderBlock::linears()
  std::vector<Tensor> biases;   // same; empty tensor: no bias
  std::vector<Tensor>
      norms;  // by DecoderBlock::norms(); more where an architecture's load() makes them
  std::int64_t block = 0;  // whose they are

  // The same tensors, borrowed: they may be replaced by others, and are written to by nobody.
  BlockWeights borrowed() const;
};

// A micro-batch on its way through a block. Rows are tokens: `sequences` sequences of `length`.
struct BlockState {
  Tensor residual;  // [sequences * length, hidden]
  Tensor input;     // [sequences * length, cols of the group], see above
  std::int64_t sequences = 0;
  std::int64_t length = 0;
};

enum class LoadLinears { kYes, kNo };

// A block is two halves, each of which adds to the residual: attention, then the MLP.
enum class Half { kAttention, kMlp };

// What a forward pass leaves for the backward pass of the same micro-batch.
struct SavedActivations {
  struct OfHalf {
    Tensor input;               // the residual before the half
    std::vector<Tensor> inner;  // by architecture; none: backward() computes them again
  };
  OfHalf attention, mlp;
  std::int64_t length = 0;

  std::size_t bytes() const;
};
enum class Save {
  kAll,    // DecoderBlock::saved_bytes()
  kInputs  // two hidden activations a token, at the price of one more forward pass; half a block at a time is whole in memory
};

// What the gradient of a linear's weight is made of, dL/dW = dyᵀ x (weight_gradient() of linear.h): of all rows, or of those
// of one sequence. Valid during the call.
struct LinearGradient {
  const Tensor& dy;  // of the linear's output: [sequences * length, rows], in the activation type
  const Tensor& x;   // the linear's input: [sequences * length, cols]
  std::int64_t length;
};
using TakeGradient = std::function<void(int linear, const LinearGradient& gradient)>;

class DecoderBlock {
 public:
  virtual ~DecoderBlock() = default;

  const std::vector<LinearSpec>& linears() const { return linears_; }
  const std::vector<SharedInput>& shared_inputs() const { return shared_inputs_; }
  // Tensors of BlockWeights::norms, by the same index.
  const std::vector<NormSpec>& norms() const { return norms_; }
  const std::vector<ScaleSet>& scale_sets() const { return scale_sets_; }
  // Queries and keys: their outputs only enter attention's scores, which clipped weights would change beyond what the
  // error of the linear itself says.
  const std::vector<int>& score_linears() const { return score_linears_; }
  std::int64_t hidden_size() const { return hidden_size_; }
  // The module path in the checkpoint: "model.layers.7" + "." + "self_attn.q_proj".
  std::string prefix(int block) const;
  std::string module(int block, std::size_t linear) const;
  // Whether activations go through it; else the residual stays as it is, and linears are not applied.
  virtual bool flows() const { return true; }
  // The linears outside the blocks that are named, some of kOuterLinears, as a block (architectures/outer_block.h). Precondition: this one is of
  // make_decoder_block().
  std::unique_ptr<DecoderBlock> outer(const std::vector<std::string>& include) const;

  // Reads and converts the weights of one block. Throws InputError naming the tensor (missing, shape, type, NaN or Inf).
  // LoadLinears::kNo leaves the linears empty: the caller has quantized ones.
  virtual BlockWeights load(const Checkpoint& checkpoint, int block, Backend& backend,
                            LoadLinears linears = LoadLinears::kYes) const = 0;

  // Computes state.input of a group that is from_residual; for the others it is already there.
  void prepare(int group, const BlockWeights& weights, BlockState& state, Backend& backend) const;
  // Applies the linears of a group to state.input (which it uses up) and moves the state on, as in the table above.
  virtual void apply(int group, const BlockWeights& weights, BlockState& state,
                     Backend& backend) const = 0;

  // All groups in order: residual in, residual out.
  void forward(const BlockWeights& weights, BlockState& state, Backend& backend) const;

  // The same with the same bits; returns what backward() needs.
  SavedActivations forward_saving(const BlockWeights& weights, BlockState& state, Save save,
                                  Backend& backend) const;
  // Of SavedActivations with Save::kAll.
  std::size_t saved_bytes(std::int64_t tokens, DType activation_type) const;
  // From dy = dL/d output [tokens, hidden], in the activation type, what every linear's gradient is made of, each handed to
  // `take` as soon as it exists, once, from the last linear of the block to the first. Returns dL/d input, if it is asked for;
  // else an empty tensor. The same bits whatever was saved.
  enum class InputGradient { kYes, kNo };
  Tensor backward(const BlockWeights& weights, SavedActivations saved, Tensor dy,
                  const TakeGradient& take, InputGradient input_gradient, Backend& backend) const;

 protected:
  // The input of a group that is from_residual.
  virtual Tensor input_from_residual(int group, const BlockWeights& weights, const Tensor& residual,
                                     Backend& backend) const = 0;

  // One half, residual in, residual out, with the bits of prepare() and apply(). Returns its inner activations.
  virtual std::vector<Tensor> forward_half(Half half, const BlockWeights& weights, Tensor& residual,
                                           std::int64_t length, Backend& backend) const = 0;
  // From the gradient of a half's output to that of its input, in place; with InputGradient::kNo whatever is there after the
  // linears' gradients are handed out. `saved` is whole; both may take out of it what they are done with.
  virtual void backward_half(Half half, const BlockWeights& weights,
                             SavedActivations::OfHalf& saved, std::int64_t length, Tensor& gradient,
                             const TakeGradient& take, InputGradient input_gradient,
                             Backend& backend) const = 0;

  std::string prefix_;  // of prefix(), before the number; "": linears have whole names
  std::vector<LinearSpec> linears_;
  std::vector<SharedInput> shared_inputs_;
  std::vector<NormSpec> norms_;
  std::vector<ScaleSet> scale_sets_;
  std::vector<int> score_linears_;
  std::int64_t hidden_size_ = 0;
  // What Save::kAll saves of a token: values in the activation type, and in F32.
  std::int64_t saved_width_ = 0, saved_f32_width_ = 0;

 private:
  friend std::unique_ptr<DecoderBlock> make_decoder_block(const ModelConfig&, std::int64_t,
                                                          Backend&);
  std::optional<ModelConfig> model_;
};

// The block of this architecture, for sequences of up to `max_length` tokens.
std::unique_ptr<DecoderBlock> make_decoder_block(const ModelConfig& config, std::int64_t max_length,
                                                 Backend& backend);

}  // namespace roundhouse
