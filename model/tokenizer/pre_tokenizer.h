// Cuts a text into the words within which pairs are merged: the key "pre_tokenizer" of a tokenizer.json.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <nlohmann/json.hpp>

#include "model/tokenizer/regex_cuts.h"
#include "model/tokenizer/tokenizer.h"

namespace roundhouse {

// A text and the words in it, one behind another; what lies between is left out.
struct Words {
  struct Range {
    std::size_t begin, end;
  };
  std::string_view text;
  std::string own;  // holds the text once a step has changed it
  std::vector<Range> ranges;
  PieceStart start = PieceStart::kText;  // of the first

  std::string_view at(const Range& range) const {
    return text.substr(range.begin, range.end - range.begin);
  }
};

class PreTokenizer {
 public:
  virtual ~PreTokenizer() = default;
  virtual void apply(Words& words) const = 0;
  virtual Cut cut(char32_t left, char32_t right) const = 0;
  // What stands there afterwards.
  virtual std::pair<char32_t, char32_t> edges(char32_t left, char32_t right) const {
    return {left, right};
  }
};

class PreTokenizers {
 public:
  PreTokenizers();
  // Of the key's value. Throws InputError beginning with `where`: not one of Split, Digits, Punctuation, ByteLevel, Metaspace,
  // Whitespace, WhitespaceSplit, Sequence.
  PreTokenizers(const nlohmann::json& value, const std::string& where);
  PreTokenizers(PreTokenizers&&) noexcept;
  ~PreTokenizers();

  void apply(Words& words) const;
  // kBetween: a word always ends there.
  Cut cut(char32_t left, char32_t right) const;
  std::pair<char32_t, char32_t> edges(char32_t left, char32_t right) const;

  // Words are bytes (each of which the vocabulary has a character for): the last step is ByteLevel.
  bool gives_bytes() const { return bytes_; }

 private:
  void add(const nlohmann::json& step, const std::string& where, int depth, bool last);
  std::vector<std::unique_ptr<PreTokenizer>> steps_;
  bool bytes_ = false;
  bool late_prefix_ = false;  // a later step puts something in front of every part
};

}  // namespace roundhouse
