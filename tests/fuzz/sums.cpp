#include "stages/export/sha256sums.h"
#include "tests/fuzz/reader.h"

using namespace roundhouse;

int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  fuzz::write("a", "a");
  fuzz::write("SHA256SUMS", fuzz::text_of(data, size));
  return fuzz::may_refuse([&] { (void)verify_checkpoint(fuzz::folder()); });
}
