// Files of tasks: JSON lines, one JSON array, or tables (CSV, TSV), as the data sets are published. Read whole; they are small.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

namespace roundhouse {

// One document of a file: an object, with its keys in the file's order.
struct TaskRecord {
  nlohmann::ordered_json fields;
  std::string where;  // "FILE:12", or "FILE: entry 12" of an array, for messages

  bool has(const std::string& key) const { return fields.contains(key); }
  // These throw InputError naming file, line and key: it is missing, or of another type. A text with a NUL in it is refused, too.
  std::string text(const std::string& key) const;
  std::int64_t integer(const std::string& key) const;
  std::vector<std::string> texts(const std::string& key) const;
  const nlohmann::ordered_json& at(const std::string& key) const;
  [[noreturn]] void fail(const std::string& what) const;
};

// By the file's name: .csv (RFC 4180) and .tsv (tabs, no quotes) have a first row of column names; only where `columns` are given, and that
// row of a CSV file does not end with the last of them, it is a document. Values of tables are texts. Everything else is JSON: an array, or an
// object a line. Throws InputError naming the file, and the line: a compressed file or another format, not UTF-8, not
// JSON, a key that stands in an object twice or more than 1000 of them, not an object, a row of another length,
// longer than 1 GiB, or no document at all.
std::vector<TaskRecord> read_task_file(const std::filesystem::path& path,
                                       const std::vector<std::string>& columns = {});

}  // namespace roundhouse
