#include "pipeline/config/config.h"
#include "tests/fuzz/reader.h"

using namespace roundhouse;

// What is accepted and written out in full is accepted again, and means the same.
int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  fuzz::write("config.yaml", fuzz::text_of(data, size));
  return fuzz::may_refuse([&] {
    const RunConfig config = read_run_config(fuzz::folder());
    const std::string text = to_yaml(config);
    fuzz::write("config.yaml", text);
    try {
      if (to_yaml(read_run_config(fuzz::folder())) == text) return;
      std::fprintf(stderr, "reads back as something else:\n%s", text.c_str());
    } catch (const Error& error) {
      std::fprintf(stderr, "does not read back: %s\n%s", error.what(), text.c_str());
    }
    std::abort();
  });
}
