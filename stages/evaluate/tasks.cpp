#include "stages/evaluate/tasks.h"

#include <algorithm>
#include <functional>

#include <fmt/format.h>

#include "base/error.h"
#include "base/file.h"
#include "base/quote.h"
#include "model/template/white_space.h"
#include "stages/evaluate/document_texts.h"
#include "stages/evaluate/task_file.h"
#include "stages/evaluate/wikitext.h"

namespace roundhouse {
namespace {

namespace fs = std::filesystem;

// Labels that were published beside the questions, one a line: "valid.jsonl" and "valid-labels.lst".
fs::path labels_beside(const fs::path& file) {
  return file.parent_path() / (file.stem().string() + "-labels.lst");
}

void add_labels(std::vector<TaskRecord>& records, const fs::path& file, const std::string& key) {
  const fs::path labels = labels_beside(file);
  if (records.front().has(key) || !fs::is_regular_file(labels)) return;
  LineReader reader(labels);
  std::string line;
  std::size_t count = 0;
  while (reader.next(line)) {
    if (strip(line).empty()) continue;
    if (count < records.size()) records[count].fields[key] = strip(line);
    ++count;
  }
  if (count != records.size()) {
    throw InputError(fmt::format("{}: {} labels for {} documents of {}", labels.string(), count,
                                 records.size(), file.string()));
  }
}

std::vector<fs::path> subject_files(const fs::path& folder, const std::string& ending) {
  std::vector<fs::path> files;
  for (const fs::directory_entry& entry : fs::directory_iterator(folder)) {
    const std::string name = entry.path().filename().string();
    if (!name.ends_with(ending)) continue;
    if (utf8_prefix(name) != name.size())
      throw InputError(printable_line(entry.path().string()) + ": its name is not UTF-8");
    files.push_back(entry.path());
  }
  if (files.empty())
    throw InputError(folder.string() + ": there is no file named SUBJECT" + ending);
  std::ranges::sort(files);
  return files;
}

std::vector<TaskRecord> read_pages(const fs::path& file) {
  const std::string text = read_text_file(file);
  if (utf8_prefix(text) != text.size()) throw InputError(file.string() + ": is not UTF-8");
  std::vector<TaskRecord> records;
  for (std::string& page : wikitext_pages(text)) {
    TaskRecord& record = records.emplace_back();
    record.where = fmt::format("{}: page {}", file.string(), records.size());
    record.fields["page"] = std::move(page);
  }
  if (records.empty()) throw InputError(file.string() + ": there is no text in it");
  return records;
}

std::vector<TaskRecord> read_records(const TaskTemplate& task, const fs::path& file) {
  const std::string ending = file.extension().string();
  if (task.wikitext_pages && ending != ".jsonl" && ending != ".json") return read_pages(file);
  std::vector<TaskRecord> records = read_task_file(file);
  if (!task.labels_beside.empty()) add_labels(records, file, task.labels_beside);
  return records;
}

void append_documents(const TaskTemplate& task, std::vector<TaskRecord> records, int limit,
                      std::vector<TaskDocument>& documents) {
  if (limit > 0 && records.size() > static_cast<std::size_t>(limit))
    records.resize(static_cast<std::size_t>(limit));
  for (const TaskRecord& record : records) documents.push_back(document_of(task, record));
}

}  // namespace

bool reads_folders(const TaskTemplate& task) {
  return task.subjects && !task.subjects->ending.empty();
}

std::vector<fs::path> task_sources(const TaskTemplate& task, const fs::path& file) {
  if (reads_folders(task) && fs::is_directory(file))
    return subject_files(file, task.subjects->ending);
  std::vector<fs::path> files = {file};
  const fs::path labels = labels_beside(file);
  if (fs::is_regular_file(labels)) files.push_back(labels);
  return files;
}

std::vector<TaskDocument> read_task(const TaskTemplate& task, const fs::path& file, int limit) {
  std::vector<TaskDocument> documents;
  if (!reads_folders(task) || !fs::is_directory(file)) {
    append_documents(task, read_records(task, file), limit, documents);
    return documents;
  }
  const auto& [field, ending, columns] = *task.subjects;
  for (const fs::path& each : subject_files(file, ending)) {
    std::string subject = each.filename().string();
    subject.resize(subject.size() - ending.size());
    std::vector<TaskRecord> records = read_task_file(each, columns);
    for (TaskRecord& record : records) {
      if (!record.has(field)) record.fields[field] = subject;
    }
    append_documents(task, std::move(records), limit, documents);
  }
  return documents;
}

}  // namespace roundhouse
