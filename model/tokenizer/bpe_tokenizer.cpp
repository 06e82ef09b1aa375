// The tokenizer of GPT-2 and OPT in two files: byte-level BPE.
#include <algorithm>

#include <fmt/format.h>

#include "base/error.h"
#include "base/file.h"
#include "base/json_file.h"
#include "model/tokenizer/pipeline_tokenizer.h"
#include "model/tokenizer/tokenizer_files.h"

namespace roundhouse {
namespace {

using nlohmann::json;

constexpr std::size_t kMaxFileBytes = std::size_t{1} << 26;

void add_merge_lines(BpeModel& model, const std::filesystem::path& path) {
  const std::string text = read_text_file(path, kMaxFileBytes);
  int number = 0;
  for (std::size_t begin = 0; begin < text.size();) {
    const std::size_t end = std::min(text.find('\n', begin), text.size());
    const std::string line = text.substr(begin, end - begin);
    begin = end + 1;
    ++number;
    if (line.starts_with("#version")) continue;
    add_merge_line(model, line, fmt::format("{}:{}: ", path.string(), number));
  }
}

}  // namespace

// "LEFT RIGHT"
void add_merge_line(BpeModel& model, const std::string& line, const std::string& where) {
  const std::size_t space = line.find(' ');
  if (space == line.npos || line.find(' ', space + 1) != line.npos) {
    throw InputError(where + "not two tokens with a space between them");
  }
  model.add_merge(line.substr(0, space), line.substr(space + 1), where);
}

std::unique_ptr<Tokenizer> load_byte_bpe(const std::filesystem::path& vocabulary,
                                         const std::filesystem::path& merges,
                                         const TokenizerConfig& config) {
  const std::string where = vocabulary.string() + ": ";
  BpeModel model(read_json_file(vocabulary, kMaxFileBytes), where);
  add_merge_lines(model, merges);
  model.set({}, where);
  model.take_bytes(where);
  const json words = {{"type", "ByteLevel"},
                      {"add_prefix_space", config.add_prefix_space.value_or(false)}};
  auto tokenizer = std::make_unique<PipelineTokenizer>(Normalizer(), PreTokenizers(words, where),
                                                       std::move(model));
  const std::filesystem::path added = vocabulary.parent_path() / "added_tokens.json";
  if (std::filesystem::exists(added)) {
    const json tokens = read_json_file(added, kMaxFileBytes);
    const std::string place = added.string() + ": ";
    if (!tokens.is_object()) throw InputError(place + "not an object of tokens and ids");
    for (const auto& [token, id] : tokens.items()) tokenizer->add_token(token, id, place);
  }
  tokenizer->set_around(config, {}, {});
  return tokenizer;
}

}  // namespace roundhouse
