#include "model/tokenizer/character_kinds.h"

#include <utf8proc.h>

#include <map>

#include "model/tokenizer/utf8.h"

namespace roundhouse {
namespace {

CharacterKind kind_by_category(char32_t c) {
  if (c == '\n' || c == '\r') return kNewline;
  if (is_white_space(c)) return kOtherWhiteSpace;
  switch (utf8proc_category(static_cast<utf8proc_int32_t>(c))) {
    case UTF8PROC_CATEGORY_LU:
    case UTF8PROC_CATEGORY_LT:
      return kUpperLetter;
    case UTF8PROC_CATEGORY_LL:
      return kLowerLetter;
    case UTF8PROC_CATEGORY_LM:
    case UTF8PROC_CATEGORY_LO:
      return kCaselessLetter;
    case UTF8PROC_CATEGORY_MN:
    case UTF8PROC_CATEGORY_MC:
    case UTF8PROC_CATEGORY_ME:
      return kMark;
    case UTF8PROC_CATEGORY_ND:
    case UTF8PROC_CATEGORY_NL:
    case UTF8PROC_CATEGORY_NO:
      return kNumber;
    default:
      return kOtherCharacter;
  }
}

}  // namespace

CharacterKinds::CharacterKinds() {
  std::map<Page, std::uint16_t> known;
  for (char32_t i = 0; i < page_of_.size(); ++i) {
    Page page;
    for (char32_t j = 0; j < kPage; ++j) page[j] = kind_by_category(i * kPage + j);
    const auto [place, is_new] = known.emplace(page, static_cast<std::uint16_t>(pages_.size()));
    if (is_new) pages_.push_back(page);
    page_of_[i] = place->second;
  }
}

const CharacterKinds& CharacterKinds::table() {
  static const CharacterKinds kinds;
  return kinds;
}

}  // namespace roundhouse
