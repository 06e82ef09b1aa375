// What is done to a text before it is cut into words: the key "normalizer" of a tokenizer.json.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <nlohmann/json.hpp>

#include "model/tokenizer/tokenizer.h"

namespace roundhouse {

class NormalizerStep {
 public:
  virtual ~NormalizerStep() = default;
  // Precondition: UTF-8; it need not be for the result to be used as such.
  virtual std::string apply(std::string_view text, PieceStart start) const = 0;
  // Would it change nothing?
  virtual bool leaves(std::string_view text, PieceStart start) const = 0;
  // May a text be cut between these two? Then what stands there afterwards.
  virtual std::optional<std::pair<char32_t, char32_t>> edges(char32_t left,
                                                             char32_t right) const = 0;
};

class Normalizer {
 public:
  // Nothing to do.
  Normalizer() = default;
  // Of the key's value. Throws InputError beginning with `where`: not one of NFC, NFD, NFKC, NFKD, Prepend, Replace, Sequence.
  Normalizer(const nlohmann::json& value, const std::string& where);

  bool empty() const { return steps_.empty(); }
  // The text afterwards, in `own` if it is another.
  std::string_view apply(std::string_view text, PieceStart start, std::string& own) const;
  std::optional<std::pair<char32_t, char32_t>> edges(char32_t left, char32_t right) const;
  // Is there a step that puts something in front of a text?
  bool has_prefix() const { return prefixed_; }
  void remove_prefix();

 private:
  void add(const nlohmann::json& step, const std::string& where, int depth);
  struct Step {
    std::unique_ptr<NormalizerStep> step;
    bool prefix;
  };
  std::vector<Step> steps_;
  bool prefixed_ = false;
};

}  // namespace roundhouse
