#include "model/checkpoint/pickle.h"

#include "tests/fuzz/reader.h"

using namespace roundhouse;

int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  return fuzz::may_refuse([&] {
    (void)read_state_dict({reinterpret_cast<const std::byte*>(data), size}, "data.pkl");
  });
}
