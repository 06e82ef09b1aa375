#include "model/checkpoint/pytorch_file.h"
#include "tests/fuzz/reader.h"

using namespace roundhouse;

int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  return fuzz::may_refuse([&] {
    const PytorchFile file(fuzz::write("pytorch_model.bin", fuzz::text_of(data, size)));
    for (const std::string& name : file.names()) {
      fuzz::may_refuse([&] {
        std::size_t sum = 0;
        for (const std::byte byte : file.view(name).bytes) sum += static_cast<std::size_t>(byte);
        if (sum > 255 * size) std::abort();
      });
    }
  });
}
