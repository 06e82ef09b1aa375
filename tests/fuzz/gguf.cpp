#include "model/checkpoint/gguf.h"

#include "tests/fuzz/reader.h"

using namespace roundhouse;

// What it gives must lie in the file, and be as large as its type and shape say.
int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  return fuzz::may_refuse([&] {
    const GgufFile file(fuzz::write("model.gguf", fuzz::text_of(data, size)));
    if (file.header().size() > size) std::abort();
    for (const std::string& name : file.names()) {
      fuzz::may_refuse([&] {
        const HostView view = file.view(name);
        std::uint64_t elements = 1;
        for (const std::int64_t each : view.shape) elements *= static_cast<std::uint64_t>(each);
        if (view.bytes.size() / size_of(view.type) != elements) std::abort();
        std::size_t sum = 0;
        for (const std::byte byte : view.bytes) sum += static_cast<std::size_t>(byte);
        if (sum > 255 * size) std::abort();
      });
    }
  });
}
