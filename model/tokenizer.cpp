#include "model/tokenizer.h"

#include "base/error.h"

namespace roundhouse {

std::vector<std::int32_t> Tokenizer::encode_with_bos(std::string_view text) const {
  std::vector<std::int32_t> ids = encode(text);
  if (bos() >= 0) ids.insert(ids.begin(), bos());
  return ids;
}

std::vector<std::filesystem::path> tokenizer_files(const std::filesystem::path& directory) {
  std::vector<std::filesystem::path> files;
  for (const char* name :
       {"tokenizer.model", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
        "added_tokens.json", "chat_template.jinja", "generation_config.json"}) {
    if (std::filesystem::is_regular_file(directory / name)) files.push_back(directory / name);
  }
  return files;
}

}  // namespace roundhouse
