// Tokenizes a text with one thread and says how fast: megabytes (10^6 bytes) a second of
// the processor's time, the median of five runs after one that
// fills the cache of words.
//
//   tokenizer_bench DIRECTORY TEXT                 the text as one
//   tokenizer_bench DIRECTORY TEXT --ids OUT       and the ids of each of its lines, with what the
//                                                  tokenizer puts around a text, into OUT, a line each: what
//                                                  tests/golden/tokenizer/compare_tokenizers.py compares
#include <algorithm>
#include <array>
#include <cstdio>
#include <ctime>
#include <exception>
#include <string>
#include <string_view>
#include <vector>

#include "base/file.h"
#include "model/tokenizer/tokenizer.h"

namespace roundhouse {
namespace {

constexpr std::size_t kMaxBytes = std::size_t{1} << 31;

std::string ids_of_lines(const Tokenizer& tokenizer, std::string_view text) {
  std::string out;
  while (!text.empty()) {
    const std::string_view line = text.substr(0, text.find('\n'));
    for (const std::int32_t id : tokenizer.encode_document(line)) out += std::to_string(id) + " ";
    out += "\n";
    text.remove_prefix(std::min(text.size(), line.size() + 1));
  }
  return out;
}

int run(const std::string& directory, const std::string& file, const std::string& out) {
  const auto tokenizer = load_tokenizer(directory);
  std::printf("%s\n", tokenizer->source().c_str());
  for (const std::string& warning : tokenizer->warnings()) std::printf("%s\n", warning.c_str());
  const std::string text = read_text_file(file, kMaxBytes);
  if (!out.empty()) write_text_atomically(out, ids_of_lines(*tokenizer, text));

  WordCache cache;
  std::vector<std::int32_t> ids;
  std::array<double, 6> seconds{};
  for (double& each : seconds) {
    ids.clear();
    const std::clock_t start = std::clock();
    PieceCutter pieces(*tokenizer, text);
    while (const auto piece = pieces.next()) tokenizer->append(*piece, cache, ids);
    each = static_cast<double>(std::clock() - start) / CLOCKS_PER_SEC;
  }
  std::sort(seconds.begin() + 1, seconds.end());
  std::printf("%zu bytes, %zu tokens: %.1f MB/s\n", text.size(), ids.size(),
              static_cast<double>(text.size()) / 1e6 / seconds[3]);
  return 0;
}

}  // namespace
}  // namespace roundhouse

int main(int argc, char** argv) {
  const std::vector<std::string> given(argv + 1, argv + argc);
  const bool lines = given.size() == 4 && given[2] == "--ids";
  if (given.size() != 2 && !lines) {
    std::fprintf(stderr, "usage: tokenizer_bench DIRECTORY TEXT [--ids OUT]\n");
    return 2;
  }
  try {
    return roundhouse::run(given[0], given[1], lines ? given[3] : "");
  } catch (const std::exception& error) {
    std::fprintf(stderr, "tokenizer_bench: %s\n", error.what());
    return 2;
  }
}
