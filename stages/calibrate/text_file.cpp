#include "stages/calibrate/text_file.h"

#include <algorithm>
#include <cctype>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "base/counted.h"
#include "base/error.h"
#include "model/tokenizer/utf8.h"

namespace roundhouse {
namespace {

using nlohmann::json;

constexpr std::string_view kByteOrderMark = "\xef\xbb\xbf";
constexpr std::string_view kBlanks = " \t\r";
constexpr std::size_t kBlockBytes = std::size_t{1} << 20;  // that a thread takes at once
constexpr std::size_t kBatchBlocks = 64;                   // between two ticks
constexpr std::size_t kMaxOneJson = std::size_t{1}
                                    << 26;  // a file is tried as one JSON value up to here

bool is_json_name(std::filesystem::path path) {
  const auto extension_of = [](const std::filesystem::path& name) {
    std::string extension = name.extension().string();
    std::ranges::transform(extension, extension.begin(),
                           [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
    return extension;
  };
  std::string extension = extension_of(path);
  if (extension == ".gz" || extension == ".zst") extension = extension_of(path.stem());
  return extension == ".jsonl" || extension == ".ndjson" || extension == ".json";
}

json parse_line(std::string_view line) {
  return json::parse(line, nullptr, /*allow_exceptions=*/false);
}

// Lists and objects within one another in a line of JSON: copying them goes as deep.
bool is_deep(std::string_view line) {
  constexpr int kMost = 64;
  int depth = 0;
  bool text = false;
  for (std::size_t i = 0; i < line.size(); ++i) {
    const char c = line[i];
    if (c == '"') text = !text;
    if (text) {
      if (c == '\\') ++i;
    } else if (c == '{' || c == '[') {
      if (++depth > kMost) return true;
    } else if (c == '}' || c == ']') {
      --depth;
    }
  }
  return false;
}

std::string_view first_line_with_text(std::string_view text) {
  if (text.starts_with(kByteOrderMark)) text.remove_prefix(kByteOrderMark.size());
  text.remove_prefix(std::min(text.find_first_not_of(" \t\r\n"), text.size()));
  return text.substr(0, text.find('\n'));
}

}  // namespace

TextFile::TextFile(const std::filesystem::path& path, ThreadPool& threads,
                   const std::function<void()>& tick, const TextKey& key)
    : path_(path), file_(path, tick), key_(key.name) {
  refuse_other_formats();
  const std::string_view first = first_line_with_text(content());
  json_lines_ = is_json_name(path) || (first.starts_with('{') && parse_line(first).is_object());
  if (json_lines_) {
    find_lines(tick);
    const json begin = parse_line(line(0));
    const auto value = begin.is_object() ? begin.find(key_) : begin.end();
    if (!key.model.empty() && begin.is_object() && value != begin.end() && value->is_array())
      template_.emplace(key.model);
    check_lines(threads, tick);
  } else {
    if (first.empty()) throw InputError(path.string() + ": holds no text");
    check_utf8(threads, tick);
    if ((first.starts_with('{') || first.starts_with('[')) && content().size() <= kMaxOneJson &&
        json::accept(content())) {
      throw InputError(
          path.string() +
          ": is one JSON value, not JSON lines: an object with a \"text\" on each line");
    }
    begins_ = {0};
  }
  release_pages();
}

std::string_view TextFile::content() const {
  return {reinterpret_cast<const char*>(file_.bytes().data()), file_.bytes().size()};
}

std::string TextFile::description() const {
  const char* const kind = template_     ? "JSON lines of conversations, "
                           : json_lines_ ? "JSON lines, "
                                         : "plain text, ";
  const std::string packing = name_of(file_.packing());
  return fmt::format("{}: {}{}{}{}{}", path_.string(), packing, packing.empty() ? "" : ", ", kind,
                     counted(documents(), "document"),
                     template_ ? fmt::format(", written down by {}", template_->source()) : "");
}

std::string_view TextFile::line(std::size_t index) const {
  const std::string_view rest = content().substr(begins_[index]);
  return json_lines_ ? rest.substr(0, rest.find('\n')) : rest;
}

std::string_view TextFile::document(std::size_t index, std::string& storage) const {
  if (!json_lines_) return line(index);
  storage = text_of(index);
  return storage;
}

std::string TextFile::text_of(std::size_t index) const {
  const auto fail = [&](const std::string& what) {
    throw InputError(where(begins_[index]) + what);
  };
  json object = parse_line(line(index));
  if (!object.is_object()) fail("not a JSON object");
  const auto value = object.find(key_);
  if (value == object.end() || !(template_ ? value->is_array() : value->is_string())) {
    std::string keys;
    for (const auto& [name, each] : object.items()) {
      if (each.is_string() || each.is_array()) keys += (keys.empty() ? "" : ", ") + in_quotes(name);
    }
    fail((template_ ? "no list " : "no string ") + in_quotes(key_) +
         (keys.empty() || template_ ? "" : ": text_key says which key it is, here one of " + keys));
  }
  if (!template_) return std::move(value->get_ref<std::string&>());
  if (is_deep(line(index))) fail("nested deeper than any conversation");
  try {
    return template_->render(*value);
  } catch (const InputError& error) {
    fail(error.what());
  }
  return {};
}

std::string TextFile::where(std::size_t begin) const {
  const std::string_view before = content().substr(0, begin);
  return fmt::format("{}:{}: ", path_.string(), 1 + std::ranges::count(before, '\n'));
}

void TextFile::refuse_other_formats() const {
  if (const std::string other = other_format(content()); !other.empty())
    throw InputError(path_.string() + ": is " + other + ", not JSON lines or plain text in UTF-8");
}

std::string other_format(std::string_view content) {
  struct Format {
    std::string_view magic, name;
  };
  using std::string_view_literals::operator""sv;
  for (const auto& [magic, name] : {Format{"\x1f\x8b"sv, "a gzip file"},
                                    {"\x28\xb5\x2f\xfd"sv, "a zstd file"},
                                    {"\xfd\x37zXZ\0"sv, "an xz file"},
                                    {"BZh"sv, "a bzip2 file"},
                                    {"PK\3\4"sv, "a zip file"},
                                    {"PAR1"sv, "a Parquet file"},
                                    {"\xff\xfe"sv, "UTF-16"},
                                    {"\xfe\xff"sv, "UTF-16"}}) {
    // Letters alone may begin a text.
    const bool letters = name == "a bzip2 file" || name == "a Parquet file";
    if (!content.starts_with(magic) || (letters && is_utf8(content.substr(0, 4096)))) continue;
    return std::string(name);
  }
  return {};
}

void TextFile::find_lines(const std::function<void()>& tick) {
  const std::string_view text = content();
  std::size_t released = 0;
  for (std::size_t begin = text.starts_with(kByteOrderMark) ? kByteOrderMark.size() : 0;
       begin < text.size();) {
    const std::size_t end = std::min(text.find('\n', begin), text.size());
    if (text.substr(begin, end - begin).find_first_not_of(kBlanks) != std::string_view::npos)
      begins_.push_back(begin);
    begin = end + 1;
    if (begin - released > kBlockBytes * kBatchBlocks) {
      release_pages();
      tick();
      released = begin;
    }
  }
  if (begins_.empty()) throw InputError(path_.string() + ": holds no text");
}

void TextFile::check_lines(ThreadPool& threads, const std::function<void()>& tick) const {
  // Documents [first[i], first[i + 1]) are a block.
  for (std::size_t done = 0; done < documents();) {
    std::vector<std::size_t> first = {done};
    while (done < documents() && first.size() <= kBatchBlocks) {
      std::size_t bytes = 0;
      for (; done < documents() && bytes < kBlockBytes; ++done) bytes += bytes_of(done);
      first.push_back(done);
    }
    threads.run(static_cast<std::int64_t>(first.size()) - 1, [&](std::int64_t block, int) {
      const auto i = static_cast<std::size_t>(block);
      for (std::size_t index = first[i]; index < first[i + 1]; ++index) (void)text_of(index);
    });
    release_pages();
    tick();
  }
}

void TextFile::check_utf8(ThreadPool& threads, const std::function<void()>& tick) const {
  const std::string_view text = content();
  // A block begins with a character: at most 3 bytes of the one before come first.
  const auto begin_of = [&](std::size_t block) {
    std::size_t begin = std::min(block * kBlockBytes, text.size());
    for (int i = 0; i < 3 && begin > 0 && begin < text.size() &&
                    (static_cast<unsigned char>(text[begin]) & 0xc0) == 0x80;
         ++i) {
      ++begin;
    }
    return begin;
  };
  const std::size_t blocks = (text.size() + kBlockBytes - 1) / kBlockBytes;
  for (std::size_t first = 0; first < blocks; first += kBatchBlocks) {
    const std::size_t count = std::min(kBatchBlocks, blocks - first);
    threads.run(static_cast<std::int64_t>(count), [&](std::int64_t i, int) {
      const std::size_t block = first + static_cast<std::size_t>(i);
      const std::size_t begin = begin_of(block), end = begin_of(block + 1);
      const std::size_t good = utf8_prefix(text.substr(begin, end - begin));
      if (begin + good < end)
        throw InputError(
            fmt::format("{}is not UTF-8 at byte {}", where(begin + good), begin + good));
    });
    release_pages();
    tick();
  }
}

}  // namespace roundhouse
