#include <array>

#include "model/checkpoint/checkpoint.h"
#include "model/checkpoint/safetensors.h"
#include "tests/fuzz/reader.h"

using namespace roundhouse;

// Beside the index lies one file of two tensors, "a" and "b".
int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  [[maybe_unused]] static const bool written = [] {
    SafetensorsWriter writer(fuzz::folder() / "part.safetensors",
                             {{"a", DType::kF16, {2}}, {"b", DType::kF16, {1}}}, {});
    const std::array<std::byte, 4> zeros{};
    writer.write("a", zeros);
    writer.write("b", std::span(zeros).first(2));
    writer.close();
    return true;
  }();
  fuzz::write("model.safetensors.index.json", fuzz::text_of(data, size));
  return fuzz::may_refuse([&] {
    const Checkpoint checkpoint(fuzz::folder());
    for (const std::string& name : checkpoint.names()) (void)checkpoint.view(name);
  });
}
