#include "model/checkpoint/safetensors.h"

#include "tests/fuzz/reader.h"

using namespace roundhouse;

// What it gives must lie in the file.
int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  return fuzz::may_refuse([&] {
    const SafetensorsFile file(fuzz::write("model.safetensors", fuzz::text_of(data, size)));
    for (const std::string& name : file.names()) {
      fuzz::may_refuse([&] {
        std::size_t sum = 0;
        for (const std::byte byte : file.view(name).bytes) sum += static_cast<std::size_t>(byte);
        if (sum > 255 * size) std::abort();
      });
    }
  });
}
