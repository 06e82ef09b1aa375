#include "base/hash.h"
#include "pipeline/hdf5_store.h"
#include "tests/fuzz/reader.h"

using namespace roundhouse;

int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  fuzz::write("record.h5", fuzz::text_of(data, size));
  return fuzz::may_refuse([&] {
    Hdf5Store store(fuzz::folder());
    const bool whole = store.check("record").empty();
    if (store.has("record") && !whole) std::abort();
    if (store.load("record").has_value() && !whole) std::abort();
  });
}
