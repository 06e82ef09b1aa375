#include <algorithm>
#include <array>
#include <span>

#include "base/hash.h"
#include "pipeline/run/hdf5_store.h"
#include "tests/fuzz/reader.h"

using namespace roundhouse;

namespace {

// With the seal that the store would give it, so that what is read behind the seal is met, too.
std::string sealed(std::string_view body) {
  const std::string head =
      "roundhouse-record 2\nkey record\nidentity none\nbytes " + std::to_string(body.size()) + "\n";
  Xxh3 hash;
  hash.update(std::as_bytes(std::span(head)));
  hash.update(std::as_bytes(std::span(body)));
  std::string file = head + "xxh3-128 " + hash.hex() + "\n";
  file.resize(512, '\0');
  return file.append(body);
}

constexpr std::array<std::string_view, 4> kOfTheSeal = {"it has no seal", "its seal is damaged",
                                                        "it is cut short",
                                                        "its content does not match its hash"};

}  // namespace

// The first byte says whether the rest is a file as it lies there, or what follows its seal ('s').
int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  if (size == 0) return 0;
  const bool seal = data[0] == 's';
  const std::string_view rest = fuzz::text_of(data + 1, size - 1);
  fuzz::write("record.h5", seal ? sealed(rest) : std::string(rest));
  return fuzz::may_refuse([&] {
    Hdf5Store store(fuzz::folder());
    const std::string why = store.check("record");
    if (seal && std::ranges::find(kOfTheSeal, why) != kOfTheSeal.end()) std::abort();
    if (store.load("record").has_value() && !why.empty()) std::abort();
  });
}
