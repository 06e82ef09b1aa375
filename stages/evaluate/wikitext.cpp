#include "stages/evaluate/wikitext.h"

#include <utility>

#include "model/template/template_value.h"
#include "model/template/white_space.h"

namespace roundhouse {
namespace {

// Takes white space away on the inner side of each pair: from `open` to the first `close` behind it.
std::string tightened(std::string_view text, char open, char close) {
  std::string result;
  for (;;) {
    const std::size_t begin = text.find(open);
    const std::size_t end = begin == std::string_view::npos ? begin : text.find(close, begin + 1);
    if (end == std::string_view::npos) return result += text;
    result += text.substr(0, begin + 1);
    result += strip(text.substr(begin + 1, end - begin - 1));
    result += close;
    text.remove_prefix(end + 1);
  }
}

}  // namespace

std::vector<std::string> wikitext_pages(std::string_view text) {
  std::vector<std::string> pages;
  std::string page;
  bool first_line = true;
  const auto flush = [&] {
    if (!strip(page).empty()) pages.push_back(page);
    page.clear();
    first_line = true;
  };
  while (true) {
    const std::size_t end = text.find('\n');
    const std::string_view line = text.substr(0, end);
    const std::string marks = replaced(replaced(line, "= = =", "==="), "= =", "==");
    const std::string_view heading = strip(marks);
    if (heading.starts_with("= ") && heading.ends_with(" =")) flush();
    if (!std::exchange(first_line, false)) page += '\n';
    page += line;
    if (end == std::string_view::npos) break;
    text.remove_prefix(end + 1);
  }
  flush();
  return pages;
}

std::string detokenized_wikitext(std::string page) {
  using Pairs = std::vector<std::pair<std::string_view, std::string_view>>;
  static const Pairs before = {{"s '", "s'"}, {" @-@ ", "-"}, {" @,@ ", ","}, {" @.@ ", "."},
                               {" : ", ": "}, {" ; ", "; "},  {" . ", ". "},  {" ! ", "! "},
                               {" ? ", "? "}, {" , ", ", "}};
  static const Pairs after = {{"= = = =", "===="},    {"= = =", "==="}, {"= =", "=="},
                              {" \u00b0 ", "\u00b0"}, {" \n", "\n"},    {"\n ", "\n"},
                              {" N ", " 1 "},         {" 's", "'s"}};
  for (const auto& [from, to] : before) page = replaced(page, from, to);
  for (const auto& [open, close] :
       {std::pair('(', ')'), {'[', ']'}, {'{', '}'}, {'"', '"'}, {'\'', '\''}})
    page = tightened(page, open, close);
  for (const auto& [from, to] : after) page = replaced(page, from, to);
  return page;
}

}  // namespace roundhouse
