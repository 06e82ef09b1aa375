#include "stages/evaluate/task_file.h"

#include <algorithm>
#include <set>
#include <span>
#include <string_view>

#include <fmt/format.h>

#include "base/error.h"
#include "base/file.h"
#include "base/json_file.h"
#include "base/packed_file.h"
#include "base/quote.h"
#include "stages/calibrate/text_file.h"

namespace roundhouse {
namespace {

using Json = nlohmann::ordered_json;

constexpr std::size_t kMostBytes = std::size_t{1} << 30;

std::string at_line(const std::filesystem::path& path, std::size_t line) {
  return fmt::format("{}:{}", path.string(), line);
}

TaskRecord object(Json fields, std::string where) {
  if (!fields.is_object()) throw InputError(where + ": is not a JSON object, {...}");
  return {std::move(fields), std::move(where)};
}

std::vector<TaskRecord> read_json(std::string_view text, const std::filesystem::path& path) {
  std::vector<TaskRecord> records;
  const std::size_t first = text.find_first_not_of(" \t\r\n");
  if (first != std::string_view::npos && text[first] == '[') {
    Json list = parse_ordered_json(text, path.string());
    for (std::size_t i = 0; i < list.size(); ++i) {
      records.push_back(
          object(std::move(list[i]), fmt::format("{}: entry {}", path.string(), i + 1)));
    }
    return records;
  }
  for (std::size_t line = 1; !text.empty(); ++line) {
    const std::size_t end = std::min(text.find('\n'), text.size());
    const std::string_view content = text.substr(0, end);
    text.remove_prefix(std::min(end + 1, text.size()));
    if (content.find_first_not_of(" \t\r") == std::string_view::npos) continue;
    records.push_back(
        object(parse_ordered_json(content, at_line(path, line)), at_line(path, line)));
  }
  return records;
}

struct Row {
  std::vector<std::string> cells;
  std::size_t line;
};

std::vector<Row> read_tsv(std::string_view text) {
  std::vector<Row> rows;
  for (std::size_t line = 1; !text.empty(); ++line) {
    std::size_t end = std::min(text.find('\n'), text.size());
    std::string_view content = text.substr(0, end);
    text.remove_prefix(std::min(end + 1, text.size()));
    if (content.ends_with('\r')) content.remove_suffix(1);
    if (content.empty()) continue;
    Row row{.cells = {}, .line = line};
    for (std::size_t begin = 0; begin <= content.size(); begin = end + 1) {
      end = std::min(content.find('\t', begin), content.size());
      row.cells.emplace_back(content.substr(begin, end - begin));
    }
    rows.push_back(std::move(row));
  }
  return rows;
}

std::vector<Row> read_csv(std::string_view text, const std::filesystem::path& path) {
  std::vector<Row> rows;
  std::size_t line = 1;
  for (std::size_t i = 0; i < text.size();) {
    Row row{.cells = {}, .line = line};
    for (bool more = true; more;) {
      std::string cell;
      if (i < text.size() && text[i] == '"') {
        for (++i;; ++i) {
          if (i >= text.size())
            throw InputError(at_line(path, row.line) + ": a quoted field does not end");
          if (text[i] == '"' && !(i + 1 < text.size() && text[i + 1] == '"')) break;
          if (text[i] == '"') ++i;  // two stand for one
          if (text[i] == '\n') ++line;
          cell += text[i];
        }
        ++i;
      } else {
        while (i < text.size() && text[i] != ',' && text[i] != '\n') cell += text[i++];
        if (cell.ends_with('\r')) cell.pop_back();
      }
      if (i < text.size() && text[i] == '\r') ++i;
      if (i < text.size() && text[i] != ',' && text[i] != '\n')
        throw InputError(at_line(path, line) + ": text behind a quoted field");
      more = i < text.size() && text[i] == ',';
      row.cells.push_back(std::move(cell));
      if (i < text.size()) ++i;
    }
    ++line;
    if (row.cells.size() > 1 || !row.cells[0].empty()) rows.push_back(std::move(row));
  }
  return rows;
}

std::vector<TaskRecord> records_of(std::vector<Row> rows, const std::filesystem::path& path,
                                   std::vector<std::string> columns) {
  if (rows.empty()) return {};
  if (columns.empty() || rows[0].cells.back() == columns.back()) {
    if (columns.empty()) columns = rows[0].cells;
    rows.erase(rows.begin());
  }
  std::vector<TaskRecord> records;
  for (Row& row : rows) {
    const std::string where = at_line(path, row.line);
    if (row.cells.size() != columns.size()) {
      throw InputError(
          fmt::format("{}: has {} fields instead of {}", where, row.cells.size(), columns.size()));
    }
    Json fields = Json::object();
    for (std::size_t i = 0; i < columns.size(); ++i) fields[columns[i]] = std::move(row.cells[i]);
    records.push_back({std::move(fields), where});
  }
  return records;
}

}  // namespace

std::string TaskRecord::text(const std::string& key) const {
  const auto fail = [&](const char* what) {
    throw InputError(where + ": " + in_quotes(key) + " " + what);
  };
  const auto found = fields.find(key);
  if (found == fields.end()) fail("is missing");
  if (!found->is_string()) fail("must be a text");
  std::string text = found->get<std::string>();
  if (text.find('\0') != std::string::npos) fail("has a NUL in it");
  return text;
}

std::vector<TaskRecord> read_task_file(const std::filesystem::path& path,
                                       const std::vector<std::string>& columns) {
  std::string content;
  read_content(path, [&](std::span<const std::byte> part) {
    if (content.size() + part.size() > kMostBytes)
      throw InputError(fmt::format("{}: more than {} MiB", path.string(), kMostBytes >> 20));
    content.append(reinterpret_cast<const char*>(part.data()), part.size());
  });
  std::string_view text = content;
  if (const std::string other = other_format(text); !other.empty())
    throw InputError(path.string() + ": is " + other + ", not JSON or a table in UTF-8");
  if (text.starts_with("\xef\xbb\xbf")) text.remove_prefix(3);  // a byte order mark
  if (const std::size_t good = utf8_prefix(text); good < text.size()) {
    const auto line = std::ranges::count(text.substr(0, good), '\n') + 1;
    throw InputError(at_line(path, static_cast<std::size_t>(line)) + ": is not UTF-8");
  }
  std::string ending = path.extension().string();
  if (ending == ".gz" || ending == ".zst") ending = path.stem().extension().string();
  std::vector<TaskRecord> records = ending == ".csv"
                                        ? records_of(read_csv(text, path), path, columns)
                                    : ending == ".tsv" ? records_of(read_tsv(text), path, {})
                                                       : read_json(text, path);
  if (records.empty()) throw InputError(path.string() + ": there is no document in it");
  return records;
}

}  // namespace roundhouse
