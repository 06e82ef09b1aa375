#include "model/architectures/tensor_names.h"
#include "model/model_config.h"
#include "tests/fuzz/reader.h"

using namespace roundhouse;

int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  fuzz::write("config.json", fuzz::text_of(data, size));
  return fuzz::may_refuse([&] {
    const ModelConfig config = read_model_config(fuzz::folder());
    for (const TensorInfo& tensor : tensors_of_block(config, config.blocks - 1)) {
      for (const std::int64_t length : tensor.shape) {
        if (length <= 0) std::abort();
      }
    }
  });
}
