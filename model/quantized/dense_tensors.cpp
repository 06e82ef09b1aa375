#include "model/quantized/dense_tensors.h"

#include <optional>

#include "base/error.h"
#include "model/checkpoint/load_weight.h"

namespace roundhouse {
namespace {

// Where a dense tensor of this name belongs; nothing if it is none.
struct DensePlace {
  bool norm;
  std::size_t index;  // into norms, or into linears and biases
  std::int64_t size;
};

std::optional<DensePlace> place_of(const std::string& name, const DecoderBlock& decoder) {
  for (std::size_t i = 0; i < decoder.norms().size(); ++i) {
    const NormSpec& norm = decoder.norms()[i];
    if (name == norm.name) return DensePlace{true, i, norm.size};
  }
  for (std::size_t i = 0; i < decoder.linears().size(); ++i) {
    const LinearSpec& linear = decoder.linears()[i];
    if (name == linear.name + ".bias") return DensePlace{false, i, linear.rows};
  }
  return std::nullopt;
}

}  // namespace

void validate(const DenseTensors& tensors, const DecoderBlock& decoder) {
  for (const auto& [name, tensor] : tensors) {
    const std::optional<DensePlace> place = place_of(name, decoder);
    if (!place) throw Error(name + " is no norm and no bias of this model's blocks");
    if (tensor.shape() != Shape{place->size}) throw Error(name + " has the wrong shape");
    if (tensor.type() != DType::kF32 && tensor.type() != DType::kF16 &&
        tensor.type() != DType::kBF16) {
      throw Error(name + " is of type " + std::string(name_of(tensor.type())));
    }
    check_values(tensor.view(), tensor.type(), name);
  }
}

void replace(BlockWeights& weights, const DenseTensors& tensors, const DecoderBlock& decoder,
             Backend& backend) {
  for (const auto& [name, tensor] : tensors) {
    const std::optional<DensePlace> place = place_of(name, decoder);
    require(place.has_value(), "replaced tensors are validated first");
    Tensor& target = (place->norm ? weights.norms : weights.biases).at(place->index);
    require(!target.empty(), "a tensor is replaced that the checkpoint does not have");
    target = Tensor::upload(backend, tensor.view(), backend.activation_type());
  }
  backend.sync();  // the caller's tensors may end
}

}  // namespace roundhouse
