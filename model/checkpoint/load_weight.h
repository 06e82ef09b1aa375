// From a file to a backend: a weight as the kernels take it.
#pragma once

#include <string>

#include "base/tensor.h"
#include "kernels/backend.h"
#include "model/checkpoint/checkpoint.h"

namespace roundhouse {

// Throws InputError naming the tensor if a value is NaN or infinite, or would become so in `type`.
// Precondition: view.type is F32, F16 or BF16.
void check_values(const HostView& view, DType type, const std::string& name);

// Checkpoint::weight(), checked and noted (note_content()), in the backend's activation type.
Tensor load_weight(const Checkpoint& checkpoint, const std::string& name, const Shape& shape,
                   Backend& backend);

// [1, cols] of one value, in the backend's activation type.
Tensor constant_row(std::int64_t cols, float value, Backend& backend);

}  // namespace roundhouse
