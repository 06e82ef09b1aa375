// The pickles inside PyTorch's checkpoints. A pickle is a program for a stack machine that may call any function of Python;
// here it may do no more than build dictionaries of tensors. Nothing of it is executed.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "base/tensor.h"

namespace roundhouse {

// A tensor as _rebuild_tensor_v2 would make it. Nothing is checked against the storage, nor against overflow.
struct PickledTensor {
  std::string name;
  std::string storage_type;  // "HalfStorage", ...
  std::string storage_key;
  std::int64_t storage_elements = 0;
  std::int64_t offset = 0;  // in elements
  Shape shape;
  Shape strides;
};

// The state dict that the pickle leaves: every entry is a tensor. Known are the opcodes of protocols 2 to 4 that make up a
// state dict, and of functions and types torch._utils._rebuild_tensor_v2, collections.OrderedDict and torch.*Storage; for
// anything else throws InputError that begins with `where` and names the byte and the opcode or function.
std::vector<PickledTensor> read_state_dict(std::span<const std::byte> pickle,
                                           const std::string& where);

}  // namespace roundhouse
