#include "model/template/template_tree.h"

#include <algorithm>
#include <array>
#include <cctype>
#include <charconv>
#include <cstdint>

#include <fmt/format.h>

#include "base/error.h"
#include "base/quote.h"
#include "model/tokenizer/utf8.h"

namespace roundhouse {
namespace {

using Kind = TemplateExpression::Kind;
using Expression = std::unique_ptr<TemplateExpression>;

constexpr std::size_t kMaxBytes = std::size_t{1} << 20;
constexpr int kMaxDepth = 64;
constexpr std::size_t kMaxWords = 2048;  // of a tag: how deep a tree of sums may be
constexpr std::string_view kSpace = " \t\r\n\f\v";

// A word of what stands between {{ and }}, or {% and %}.
struct Word {
  enum class Kind { kName, kNumber, kText, kSign, kEnd };
  Kind kind = Kind::kEnd;
  std::string text;
};

// A stretch of text, or a tag.
struct Segment {
  char tag = 0;  // 0: text, '{': {{ .. }}, '%': {% .. %}
  std::string text;
  std::vector<Word> words;
  std::size_t line = 1;
};

struct Source {
  std::string where;  // empty: errors do not say it
  bool has_blocks;    // {% %} and {# #}

  [[noreturn]] void fail(std::size_t line, const std::string& what) const {
    throw InputError(where.empty() ? what : fmt::format("{}:{}: {}", where, line, what));
  }
};

class Segments {
 public:
  Segments(std::string_view source, const Source& from) : rest_(source), from_(from) {}

  std::vector<Segment> run() {
    if (from_.has_blocks && rest_.ends_with('\n')) rest_.remove_suffix(1);
    while (!rest_.empty()) {
      const std::size_t open = find_tag();
      std::string_view text = rest_.substr(0, open);
      if (trims_all_) text.remove_prefix(std::min(text.find_first_not_of(kSpace), text.size()));
      if (trims_line_ && text.starts_with('\n')) text.remove_prefix(1);
      trims_all_ = trims_line_ = false;
      if (open < rest_.size()) text = before_tag(text, rest_.substr(open));
      if (!text.empty()) segments_.push_back({0, std::string(text), {}, line_});
      count_lines(rest_.substr(0, open));
      rest_.remove_prefix(open);
      if (!rest_.empty()) take_tag();
    }
    return std::move(segments_);
  }

 private:
  [[noreturn]] void fail(const std::string& what) const { from_.fail(line_, what); }
  void count_lines(std::string_view text) {
    line_ += static_cast<std::size_t>(std::ranges::count(text, '\n'));
  }
  std::size_t find_tag() const {
    for (std::size_t at = rest_.find('{'); at < rest_.size() - 1; at = rest_.find('{', at + 1)) {
      if (std::string_view("{%#").find(rest_[at + 1]) != std::string_view::npos) return at;
    }
    return rest_.size();
  }
  // What stays of a text before a tag.
  std::string_view before_tag(std::string_view text, std::string_view tag) const {
    const char mark = tag.size() > 2 ? tag[2] : ' ';
    if (mark == '-') return text.substr(0, text.find_last_not_of(kSpace) + 1);
    if (mark == '+' || tag[1] == '{') return text;
    // White space between the line's beginning and a block is not text.
    const std::size_t end = text.find_last_not_of(" \t") + 1;
    const bool line_begins = end == 0 ? first_of_line_ : text[end - 1] == '\n';
    return line_begins ? text.substr(0, end) : text;
  }
  void take_tag() {
    const char tag = rest_[1];
    if (tag != '{' && !from_.has_blocks)
      fail("of Jinja2 there are only {{expressions}} here, at " + in_quotes(rest_));
    std::size_t at = 2;
    if (at < rest_.size() && (rest_[at] == '-' || rest_[at] == '+')) ++at;
    Segment segment{tag, {}, {}, line_};
    const std::string close = tag == '{' ? "}}" : std::string(1, tag) + "}";
    const auto closes = [&](std::string_view text) {
      const std::size_t mark = !text.empty() && (text[0] == '-' || text[0] == '+') ? 1 : 0;
      return text.substr(mark).starts_with(close);
    };
    if (tag == '#') {
      const std::size_t end = rest_.find("#}", at);
      if (end == std::string_view::npos) fail("{# without #}");
      at = rest_[end - 1] == '-' && end > 2 ? end - 1 : end;
    } else {
      int open = 0;  // braces, for maps
      for (;;) {
        at = std::min(rest_.find_first_not_of(kSpace, at), rest_.size());
        if (at == rest_.size()) fail(std::string("{") + tag + " without " + close);
        if (open == 0 && closes(rest_.substr(at))) break;
        if (rest_[at] == '{') ++open;
        if (rest_[at] == '}') --open;
        segment.words.push_back(take_word(at));
        if (segment.words.size() > kMaxWords) fail("a tag that is too long");
      }
    }
    trims_all_ = rest_[at] == '-';
    const bool keeps = rest_[at] == '+';
    at += (trims_all_ || keeps ? 1 : 0) + 2;
    trims_line_ = !trims_all_ && !keeps && tag != '{';
    first_of_line_ = tag != '{' && at < rest_.size() && rest_[at] == '\n' && trims_line_;
    count_lines(rest_.substr(0, at));
    rest_.remove_prefix(at);
    if (tag != '#') segments_.push_back(std::move(segment));
  }
  Word take_word(std::size_t& at) {
    const auto is_name = [](char c) {
      return std::isalnum(static_cast<unsigned char>(c)) != 0 || c == '_';
    };
    const char c = rest_[at];
    if (c == '\'' || c == '"') return {Word::Kind::kText, take_text(at)};
    if (is_name(c)) {
      const std::size_t begin = at;
      while (at < rest_.size() && is_name(rest_[at])) ++at;
      const bool number = std::isdigit(static_cast<unsigned char>(c)) != 0;
      return {number ? Word::Kind::kNumber : Word::Kind::kName,
              std::string(rest_.substr(begin, at - begin))};
    }
    for (const std::string_view sign : {"==", "!=", "<=", ">=", "//", "**"}) {
      if (!rest_.substr(at).starts_with(sign)) continue;
      at += 2;
      return {Word::Kind::kSign, std::string(sign)};
    }
    if (std::string_view("+-*/%~|.,:()[]{}<>=").find(c) == std::string_view::npos)
      fail("a character that is not read: " + in_quotes(std::string(1, c)));
    ++at;
    return {Word::Kind::kSign, std::string(1, c)};
  }
  std::string take_text(std::size_t& at) {
    const char quote = rest_[at++];
    std::string text;
    for (; at < rest_.size() && rest_[at] != quote; ++at) {
      if (rest_[at] != '\\' || at + 1 == rest_.size()) {
        text += rest_[at];
        continue;
      }
      const char c = rest_[++at];
      constexpr std::string_view kNames = "ntrfv0", kMeant{"\n\t\r\f\v\0", 6};
      if (const std::size_t which = kNames.find(c); which != kNames.npos) {
        text += kMeant[which];
      } else if (c == '\\' || c == '\'' || c == '"') {
        text += c;
      } else if (c == 'u' && at + 4 < rest_.size()) {
        std::uint32_t code = 0;
        const char* const begin = rest_.data() + at + 1;
        if (std::from_chars(begin, begin + 4, code, 16).ptr != begin + 4)
          fail("\\u without digits");
        append_utf8(text, code);
        at += 4;
      } else if (std::isalnum(static_cast<unsigned char>(c)) != 0) {
        fail("after \\ in a text there must be n, t, r, f, v, 0, uXXXX, \\, \" or ', not " +
             in_quotes(std::string(1, c)));
      } else {
        text += {'\\', c};
      }
    }
    if (at == rest_.size()) fail("a text without an end");
    ++at;
    return text;
  }

  std::string_view rest_;
  const Source& from_;
  std::vector<Segment> segments_;
  std::size_t line_ = 1;
  bool trims_all_ = false, trims_line_ = false;
  bool first_of_line_ = true;  // does a text that is only blanks begin a line?
};

class Parser {
 public:
  Parser(std::vector<Segment> segments, const Source& from)
      : segments_(std::move(segments)), from_(from) {}

  std::vector<TemplateNode> run() { return body({}, 0); }

 private:
  [[noreturn]] void fail(const std::string& what) const {
    const std::size_t line = segment_ < segments_.size() ? segments_[segment_].line
                             : segments_.empty()         ? 1
                                                         : segments_.back().line;
    from_.fail(line, what);
  }
  const Word& word() const {
    static const Word end;
    const std::vector<Word>& words = segments_[segment_].words;
    return at_ < words.size() ? words[at_] : end;
  }
  bool is(std::string_view text, Word::Kind kind) const {
    return word().kind == kind && word().text == text;
  }
  bool take(std::string_view sign) {
    if (!is(sign, Word::Kind::kSign)) return false;
    ++at_;
    return true;
  }
  bool take_name(std::string_view name) {
    if (!is(name, Word::Kind::kName)) return false;
    ++at_;
    return true;
  }
  void need(std::string_view sign) {
    if (!take(sign)) fail(in_quotes(std::string(sign)) + " is missing before " + next());
  }
  std::string next() const {
    return word().kind == Word::Kind::kEnd ? "the end" : in_quotes(word().text);
  }
  std::string name() {
    if (word().kind != Word::Kind::kName) fail("a name is missing before " + next());
    return segments_[segment_].words[at_++].text;
  }
  void end_of_tag() {
    if (word().kind != Word::Kind::kEnd) fail(next() + " is not read here");
    ++segment_;
    at_ = 0;
  }

  // Up to one of the words, whose tag is not taken.
  std::vector<TemplateNode> body(std::initializer_list<std::string_view> ends, int depth) {
    if (depth > kMaxDepth) fail("too deep");
    std::vector<TemplateNode> nodes;
    while (segment_ < segments_.size()) {
      const Segment& segment = segments_[segment_];
      if (segment.tag == 0) {
        nodes.push_back({.kind = TemplateNode::Kind::kText, .text = segment.text});
        ++segment_;
      } else if (segment.tag == '{') {
        TemplateNode node{.kind = TemplateNode::Kind::kOutput};
        node.expression = expression(depth + 1);
        end_of_tag();
        nodes.push_back(std::move(node));
      } else {
        if (word().kind == Word::Kind::kName &&
            std::ranges::find(ends, std::string_view(word().text)) != ends.end())
          return nodes;
        statement(nodes, depth + 1);
      }
    }
    if (ends.size() > 0) fail("{% " + std::string(*(ends.end() - 1)) + " %} is missing");
    return nodes;
  }

  void statement(std::vector<TemplateNode>& nodes, int depth) {
    const std::string what = name();
    if (what == "set") {
      nodes.push_back(set(depth));
    } else if (what == "for") {
      nodes.push_back(loop(depth));
    } else if (what == "if") {
      nodes.push_back(choice(depth));
    } else if (what == "generation" || what == "endgeneration") {
      end_of_tag();  // for training: it marks what the assistant says
    } else {
      fail("{% " + what + " %} is not read");
    }
  }
  TemplateNode set(int depth) {
    TemplateNode node{.kind = TemplateNode::Kind::kSet};
    node.names.push_back(name());
    if (take(".")) node.attribute = name();
    if (!take("=")) fail("{% set %} without = is not read");
    node.expression = expression(depth);
    end_of_tag();
    return node;
  }
  TemplateNode loop(int depth) {
    TemplateNode node{.kind = TemplateNode::Kind::kFor};
    do node.names.push_back(name());
    while (take(","));
    if (!take_name("in")) fail("{% for %} without in");
    node.expression = either(depth);
    if (take_name("if")) node.condition = expression(depth);
    end_of_tag();
    node.body = body({"endfor"}, depth);
    ++at_;
    end_of_tag();
    return node;
  }
  // Behind "if" or "elif".
  TemplateNode choice(int depth) {
    if (depth > kMaxDepth) fail("too deep");
    TemplateNode node{.kind = TemplateNode::Kind::kIf};
    node.expression = expression(depth);
    end_of_tag();
    node.body = body({"elif", "else", "endif"}, depth);
    if (take_name("elif")) {
      node.otherwise.push_back(choice(depth + 1));
      return node;
    }
    if (take_name("else")) {
      end_of_tag();
      node.otherwise = body({"endif"}, depth);
    }
    ++at_;
    end_of_tag();
    return node;
  }

  static Expression make(Kind kind, std::string name = {}) {
    auto made = std::make_unique<TemplateExpression>();
    made->kind = kind;
    made->name = std::move(name);
    return made;
  }
  template <class... T>
  static Expression make(Kind kind, std::string name, T... operands) {
    Expression made = make(kind, std::move(name));
    (made->operands.push_back(std::move(operands)), ...);
    return made;
  }

  Expression expression(int depth) {
    if (depth > kMaxDepth) fail("too deep");
    Expression value = either(depth);
    while (take_name("if")) {
      Expression condition = either(depth);
      Expression otherwise = take_name("else") ? expression(depth + 1) : nullptr;
      value = make(Kind::kChoice, "", std::move(value), std::move(condition), std::move(otherwise));
    }
    return value;
  }
  Expression either(int depth) {
    Expression left = both(depth);
    while (take_name("or")) left = make(Kind::kBinary, "or", std::move(left), both(depth));
    return left;
  }
  Expression both(int depth) {
    Expression left = negated(depth);
    while (take_name("and")) left = make(Kind::kBinary, "and", std::move(left), negated(depth));
    return left;
  }
  Expression negated(int depth) {
    if (depth > kMaxDepth) fail("too deep");
    if (take_name("not")) return make(Kind::kNot, "", negated(depth + 1));
    return comparison(depth);
  }
  Expression comparison(int depth) {
    Expression left = arithmetic(depth, 0);
    for (;;) {
      std::string sign = word().text;
      if (is("not", Word::Kind::kName)) {
        ++at_;
        if (!take_name("in")) fail("not without in");
        sign = "in";
        left =
            make(Kind::kNot, "", make(Kind::kBinary, sign, std::move(left), arithmetic(depth, 0)));
        continue;
      }
      constexpr std::array<std::string_view, 6> kSigns = {"==", "!=", "<", ">", "<=", ">="};
      const bool compares = word().kind == Word::Kind::kSign &&
                            std::ranges::find(kSigns, std::string_view(sign)) != kSigns.end();
      if (!compares && !is("in", Word::Kind::kName)) return left;
      ++at_;
      left = make(Kind::kBinary, sign, std::move(left), arithmetic(depth, 0));
    }
  }
  Expression arithmetic(int depth, std::size_t level) {
    constexpr std::array<std::array<std::string_view, 4>, 3> kLevels = {
        {{"+", "-", "+", "-"}, {"~", "~", "~", "~"}, {"*", "/", "//", "%"}}};
    if (level == kLevels.size()) return unary(depth);
    Expression left = arithmetic(depth, level + 1);
    for (;;) {
      const std::string sign = word().text;
      if (word().kind != Word::Kind::kSign ||
          std::ranges::find(kLevels[level], std::string_view(sign)) == kLevels[level].end())
        return left;
      ++at_;
      left = make(Kind::kBinary, sign, std::move(left), arithmetic(depth, level + 1));
    }
  }
  Expression unary(int depth) {
    if (depth > kMaxDepth) fail("too deep");
    if (take("-"))
      return filtered(make(Kind::kNegative, "", postfix(primary(depth), depth)), depth);
    return filtered(postfix(primary(depth), depth), depth);
  }

  Expression primary(int depth) {
    if (word().kind == Word::Kind::kText) {
      Expression value = make(Kind::kValue);
      std::string text;
      for (; word().kind == Word::Kind::kText; ++at_) text += word().text;
      value->value = text;
      return value;
    }
    if (word().kind == Word::Kind::kNumber) {
      Expression value = make(Kind::kValue);
      std::int64_t number = 0;
      const std::string& digits = word().text;
      const auto [stop, error] =
          std::from_chars(digits.data(), digits.data() + digits.size(), number);
      if (error != std::errc{} || stop != digits.data() + digits.size())
        fail(next() + " is not an integer");
      value->value = number;
      ++at_;
      return value;
    }
    if (take("(")) {
      Expression inner = expression(depth + 1);
      need(")");
      return inner;
    }
    if (take("[")) {
      Expression list = make(Kind::kList);
      while (!take("]")) {
        list->operands.push_back(expression(depth + 1));
        if (!take(",") && !is("]", Word::Kind::kSign)) fail("] is missing before " + next());
      }
      return list;
    }
    if (take("{")) {
      Expression map = make(Kind::kMap);
      while (!take("}")) {
        if (word().kind != Word::Kind::kText) fail("a key that is no text");
        const std::string key = segments_[segment_].words[at_++].text;
        need(":");
        map->named.emplace_back(key, expression(depth + 1));
        if (!take(",") && !is("}", Word::Kind::kSign)) fail("} is missing before " + next());
      }
      return map;
    }
    const std::string variable = name();
    Expression value = make(Kind::kName, variable);
    if (variable == "true" || variable == "True" || variable == "false" || variable == "False") {
      value = make(Kind::kValue);
      value->value = variable == "true" || variable == "True";
    } else if (variable == "none" || variable == "None") {
      value = make(Kind::kValue);
    }
    return value;
  }

  void arguments(TemplateExpression& to, int depth) {
    while (!take(")")) {
      if (word().kind == Word::Kind::kName && at_ + 1 < segments_[segment_].words.size() &&
          segments_[segment_].words[at_ + 1].kind == Word::Kind::kSign &&
          segments_[segment_].words[at_ + 1].text == "=") {
        const std::string key = name();
        ++at_;
        to.named.emplace_back(key, expression(depth + 1));
      } else {
        to.operands.push_back(expression(depth + 1));
      }
      if (!take(",") && !is(")", Word::Kind::kSign)) fail(") is missing before " + next());
    }
  }
  Expression postfix(Expression value, int depth) {
    for (int length = 0;; ++length) {
      if (length > kMaxDepth) fail("too deep");
      if (take(".")) {
        // A list's element, too: value.0
        const bool number = word().kind == Word::Kind::kNumber && value->kind != Kind::kValue;
        const std::string part = number ? segments_[segment_].words[at_++].text : name();
        value = make(Kind::kAttribute, part, std::move(value));
      } else if (take("[")) {
        value = subscript(std::move(value), depth);
      } else if (take("(")) {
        value = make(Kind::kCall, "", std::move(value));
        arguments(*value, depth);
      } else {
        return value;
      }
    }
  }
  Expression subscript(Expression value, int depth) {
    std::array<Expression, 3> bounds;
    std::size_t colons = 0;
    for (;; ++colons) {
      if (!is(":", Word::Kind::kSign) && !is("]", Word::Kind::kSign))
        bounds.at(colons) = expression(depth + 1);
      if (colons == 2 || !take(":")) break;
    }
    need("]");
    if (colons == 0) {
      if (!bounds[0]) fail("[] without an index");
      return make(Kind::kIndex, "", std::move(value), std::move(bounds[0]));
    }
    return make(Kind::kSlice, "", std::move(value), std::move(bounds[0]), std::move(bounds[1]),
                std::move(bounds[2]));
  }
  // Filters and tests.
  Expression filtered(Expression value, int depth) {
    for (int length = 0;; ++length) {
      if (length > kMaxDepth) fail("too deep");
      if (take("|")) {
        value = make(Kind::kFilter, name(), std::move(value));
        if (take("(")) arguments(*value, depth);
      } else if (take_name("is")) {
        const bool isnt = take_name("not");
        value = make(Kind::kTest, name(), std::move(value));
        if (take("(")) arguments(*value, depth);
        if (isnt) value = make(Kind::kNot, "", std::move(value));
      } else {
        return value;
      }
    }
  }

  std::vector<Segment> segments_;
  const Source& from_;
  std::size_t segment_ = 0, at_ = 0;
};

std::vector<TemplateNode> parse(std::string_view text, const Source& from) {
  if (text.size() > kMaxBytes)
    throw InputError((from.where.empty() ? "" : from.where + ": ") + "longer than 1 MiB");
  return Parser(Segments(text, from).run(), from).run();
}

}  // namespace

std::vector<TemplateNode> parse_template(std::string_view source, const std::string& where) {
  return parse(source, {where, true});
}

std::vector<TemplateNode> parse_expressions(std::string_view source) {
  return parse(source, {"", false});
}

}  // namespace roundhouse
