#include "stages/evaluate/text_filters.h"

#include <algorithm>

#include "base/error.h"
#include "model/tokenizer/utf8.h"
#include "stages/evaluate/white_space.h"
#include "stages/evaluate/wikitext.h"

namespace roundhouse {
namespace {

using Json = nlohmann::ordered_json;
using Arguments = std::span<const Json>;

const std::string& text_of(const Json& value, const char* what) {
  if (!value.is_string()) throw InputError(std::string(what) + " must be a text");
  return value.get_ref<const std::string&>();
}

// What is searched for.
const std::string& mark_of(const Json& value) {
  const std::string& mark = text_of(value, "what is looked for");
  if (mark.empty()) throw InputError("what is looked for is empty");
  return mark;
}

const Json& list_of_texts(const Json& value) {
  const bool texts = value.is_array() &&
                     std::ranges::all_of(value, [](const Json& each) { return each.is_string(); });
  if (!texts) throw InputError("must be a list of texts");
  return value;
}

// Of a text, or of each text of a list.
template <class Change>
Json each_text(const Json& value, const Change& change) {
  if (!value.is_array()) {
    if (!value.is_string()) throw InputError("must be a text or a list of texts");
    return change(value.get_ref<const std::string&>());
  }
  Json list = Json::array();
  for (const Json& each : list_of_texts(value)) {
    list.push_back(change(each.get_ref<const std::string&>()));
  }
  return list;
}

Json trim(const Json& value, Arguments) {
  return each_text(value, [](const std::string& text) { return std::string(strip(text)); });
}

Json capitalize(const Json& value, Arguments) {
  return each_text(value, [](const std::string& text) { return capitalized(text); });
}

Json replace(const Json& value, Arguments arguments) {
  const std::string& from = mark_of(arguments[0]);
  const std::string& to = text_of(arguments[1], "what is put in its place");
  // Before it is made: a short text can become one that no memory holds.
  return each_text(value, [&](const std::string& text) {
    std::size_t found = 0;
    for (std::size_t at = 0; (at = text.find(from, at)) != std::string::npos; at += from.size())
      ++found;
    if (text.size() + found * to.size() > kMostTemplateBytes) throw InputError("becomes too long");
    return replaced(text, from, to);
  });
}

// Without what stands between `open` and `close`, and without these, wherever both are on one line.
Json remove(const Json& value, Arguments arguments) {
  const std::string& open = mark_of(arguments[0]);
  const std::string& close = mark_of(arguments[1]);
  return each_text(value, [&](const std::string& text) {
    std::string result;
    std::size_t copied = 0;
    for (std::size_t begin = 0; (begin = text.find(open, begin)) != std::string::npos;) {
      const std::size_t line_end = std::min(text.find('\n', begin + open.size()), text.size());
      const std::size_t end =
          std::string_view(text).substr(0, line_end).find(close, begin + open.size());
      if (end == std::string::npos) {
        begin += open.size();
        continue;
      }
      result.append(text, copied, begin - copied);
      begin = copied = end + close.size();
    }
    return result.append(text, copied);
  });
}

// As Python's partition() and rpartition() divide a text.
Json before(const Json& value, Arguments arguments) {
  const std::string& mark = mark_of(arguments[0]);
  return each_text(value, [&](const std::string& text) { return text.substr(0, text.find(mark)); });
}

Json after(const Json& value, Arguments arguments) {
  const std::string& mark = mark_of(arguments[0]);
  return each_text(value, [&](const std::string& text) {
    const std::size_t at = text.find(mark);
    return at == std::string::npos ? std::string() : text.substr(at + mark.size());
  });
}

Json before_last(const Json& value, Arguments arguments) {
  const std::string& mark = mark_of(arguments[0]);
  return each_text(value, [&](const std::string& text) {
    const std::size_t at = text.rfind(mark);
    return at == std::string::npos ? std::string() : text.substr(0, at);
  });
}

Json after_last(const Json& value, Arguments arguments) {
  const std::string& mark = mark_of(arguments[0]);
  return each_text(value, [&](const std::string& text) {
    const std::size_t at = text.rfind(mark);
    return at == std::string::npos ? text : text.substr(at + mark.size());
  });
}

Json detokenize_wikitext(const Json& value, Arguments) {
  return each_text(value, [](const std::string& text) { return detokenized_wikitext(text); });
}

Json join(const Json& value, Arguments arguments) {
  const std::string& between = text_of(arguments[0], "what is put between");
  const Json& list = list_of_texts(value);
  if (bytes_of(value) + list.size() * between.size() > kMostTemplateBytes)
    throw InputError("becomes too long");
  std::string joined;
  for (std::size_t i = 0; i < list.size(); ++i) {
    if (i > 0) joined += between;
    joined += list[i].get_ref<const std::string&>();
  }
  return joined;
}

// In front of each text of a list its own of another list, which is as long.
Json prepend(const Json& value, Arguments arguments) {
  const Json& list = list_of_texts(value);
  const Json& fronts = list_of_texts(arguments[0]);
  if (list.size() != fronts.size()) {
    throw InputError("there must be " + std::to_string(fronts.size()) + " of them, not " +
                     std::to_string(list.size()));
  }
  Json result = Json::array();
  for (std::size_t i = 0; i < list.size(); ++i) {
    result.push_back(fronts[i].get_ref<const std::string&>() +
                     list[i].get_ref<const std::string&>());
  }
  return result;
}

// A, B, C, ..., as many as a list has.
Json letters(const Json& value, Arguments) {
  if (!value.is_array() || value.size() > 26) throw InputError("must be a list of 26 at most");
  Json result = Json::array();
  for (std::size_t i = 0; i < value.size(); ++i)
    result.push_back(std::string(1, static_cast<char>('A' + i)));
  return result;
}

Json only(const Json& value, Arguments) {
  if (!value.is_array() || value.size() != 1 || !value[0].is_string())
    throw InputError("must have one text");
  return value[0];
}

const Json& object_of(const Json& value) {
  if (!value.is_object()) throw InputError("must be an object");
  return value;
}

Json keys(const Json& value, Arguments) {
  Json result = Json::array();
  for (const auto& [key, ignored] : object_of(value).items()) result.push_back(key);
  return result;
}

Json values(const Json& value, Arguments) {
  Json result = Json::array();
  for (const Json& each : object_of(value)) result.push_back(each);
  return result;
}

constexpr TextFilter kFilters[] = {
    {"trim", 0, trim},
    {"capitalize", 0, capitalize},
    {"replace", 2, replace},
    {"remove", 2, remove},
    {"before", 1, before},
    {"after", 1, after},
    {"before_last", 1, before_last},
    {"after_last", 1, after_last},
    {"join", 1, join},
    {"prepend", 1, prepend},
    {"letters", 0, letters},
    {"only", 0, only},
    {"keys", 0, keys},
    {"values", 0, values},
    {"detokenize_wikitext", 0, detokenize_wikitext},
};

}  // namespace

const TextFilter* find_text_filter(std::string_view name) {
  const auto* found = std::ranges::find(kFilters, name, &TextFilter::name);
  return found == std::end(kFilters) ? nullptr : found;
}

const std::vector<std::string>& text_filter_names() {
  static const std::vector<std::string> names = [] {
    std::vector<std::string> all = {"default"};
    for (const TextFilter& filter : kFilters) all.emplace_back(filter.name);
    return all;
  }();
  return names;
}

std::size_t bytes_of(const Json& value) {
  std::size_t bytes = 1;
  if (value.is_string()) bytes += value.get_ref<const std::string&>().size();
  if (value.is_structured()) {
    for (const Json& each : value) bytes += bytes_of(each);
  }
  return bytes;
}

std::string replaced(std::string_view text, std::string_view from, std::string_view to) {
  std::string result;
  for (;;) {
    const std::size_t at = text.find(from);
    result += text.substr(0, at);
    if (at == std::string_view::npos) return result;
    result += to;
    text.remove_prefix(at + from.size());
  }
}

}  // namespace roundhouse
