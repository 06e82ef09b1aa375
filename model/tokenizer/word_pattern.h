// The regular expressions by which published tokenizers cut a text into words, each matched by code of its own: several times as
// fast as by PCRE2, with the same words.
#pragma once

#include <cstddef>
#include <string_view>
#include <vector>

#include "model/tokenizer/pre_tokenizer.h"

namespace roundhouse {

class WordPattern {
 public:
  // Known by the text of the pattern; nullptr: it is another. Words are its matches: every byte of a text is in one.
  static const WordPattern* find(std::string_view pattern);
  // 's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+   (Radford et al. 2019)
  static const WordPattern& gpt2();

  // Appends the words of a text that begins at byte `at` of a longer one. Precondition: UTF-8.
  void append_words(std::string_view text, std::size_t at, std::vector<Words::Range>& words) const;
  // kBetween, or kNo.
  Cut cut(char32_t left, char32_t right) const;

  enum class Form { kGpt2, kLlama3, kNemo };
  std::string_view pattern;
  Form form;
  int digits;  // that are one word at most; 0: any number
};

}  // namespace roundhouse
