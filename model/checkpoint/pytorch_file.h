// pytorch_model.bin: what torch.save() writes of a state dict since PyTorch 1.6. A ZIP archive of
//
//   NAME/data.pkl    the dictionary, pickled (pickle.h)
//   NAME/data/KEY    the bytes of each storage, little-endian, not compressed
#pragma once

#include "model/checkpoint/tensor_file.h"

namespace roundhouse {

class PytorchFile : public TensorFile {
 public:
  // Maps the file and checks where every tensor lies. Throws InputError naming the file and, where it applies, the entry
  // or the tensor.
  explicit PytorchFile(const std::filesystem::path& path);
};

}  // namespace roundhouse
