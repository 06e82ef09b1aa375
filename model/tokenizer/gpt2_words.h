// How GPT-2 cuts a text into words before byte pairs are merged (Radford et al. 2019, "Language Models are Unsupervised
// Multitask Learners"). No merge crosses the end of a word.
#pragma once

#include <array>
#include <string>
#include <string_view>
#include <vector>

namespace roundhouse {

// What the pattern
//   's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+
// finds: words of letters, of digits or of anything else, each with the space before it; of white space the last
// character goes to what follows. Every byte is in one word. Precondition: text is UTF-8.
std::vector<std::string_view> gpt2_words(std::string_view text);

// Does a word end between these two characters wherever they stand, and do the words before and behind not depend on what is
// beyond?
bool gpt2_word_ends(char32_t left, char32_t right);

// The character, in UTF-8, that stands for each byte in vocabularies: itself if it can be seen in Latin-1, else one from
// U+0100 on.
const std::array<std::string, 256>& characters_of_bytes();

}  // namespace roundhouse
