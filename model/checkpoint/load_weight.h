// From a file to a backend: a weight as the kernels take it.
#pragma once

#include <string>
#include <vector>

#include "base/tensor.h"
#include "kernels/backend.h"
#include "model/checkpoint/checkpoint.h"

namespace roundhouse {

// Throws InputError naming the tensor if a value is NaN or infinite, or would become so in `type`.
// Precondition: view.type is F32, F16 or BF16.
void check_values(const HostView& view, DType type, const std::string& name);

// Some pieces of a weight: Checkpoint::weight(), of these the values checked, in the type of `weight`, to their place in it. Returns
// their hashes (tensor_contents.h); noting the content is left to who has those of all pieces.
std::vector<std::string> load_pieces(const Checkpoint& checkpoint, const std::string& name,
                                     const Shape& shape, Pieces pieces, Tensor& weight,
                                     Backend& backend);

// A whole weight, noted (note_content()), in the backend's activation type.
Tensor load_weight(const Checkpoint& checkpoint, const std::string& name, const Shape& shape,
                   Backend& backend);

// [1, cols] of one value, in the backend's activation type.
Tensor constant_row(std::int64_t cols, float value, Backend& backend);

}  // namespace roundhouse
