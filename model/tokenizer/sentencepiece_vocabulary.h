// What is in a tokenizer.model, for those who write it elsewhere.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

namespace roundhouse {

struct SentencePiece {
  std::string text;
  float score = 0;
  std::int32_t type = 1;  // 1 normal, 2 unknown, 3 control, 4 user-defined, 5 unused, 6 a byte
};

// All pieces, by id. Throws InputError naming the file.
std::vector<SentencePiece> sentencepiece_vocabulary(const std::filesystem::path& file);

}  // namespace roundhouse
