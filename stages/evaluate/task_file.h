// Files of tasks: JSON lines, one JSON array, or tables (CSV, TSV), as the data sets are published. Read whole; they are small.
#pragma once

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
  // Throws InputError naming file, line and key: it is missing, no text, or has a NUL in it.
  std::string text(const std::string& key) const;
};

// By the file's name: .csv (RFC 4180) and .tsv (tabs, no quotes) have a first row of column names; only where `columns` are given, and that
// row of a CSV file does not end with the last of them, it is a document. Values of tables are texts. Everything else is JSON: an array, or an
// object a line. Throws InputError naming the file, and the line: a compressed file or another format, not UTF-8, not
// JSON, a key that stands in an object twice or more than 1000 of them, not an object, a row of another length,
// longer than 1 GiB, or no document at all.
std::vector<TaskRecord> read_task_file(const std::filesystem::path& path,
                                       const std::vector<std::string>& columns = {});

}  // namespace roundhouse
