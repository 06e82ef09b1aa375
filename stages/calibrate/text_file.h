// A file of text, mapped, of any size: JSON lines, each of which is a document, or plain text, which is one; or one of these packed
// by gzip or zstd. What it is, its content says.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/packed_file.h"
#include "kernels/cpu/thread_pool.h"
#include "model/template/chat_template.h"

namespace roundhouse {

// What a file is that is neither JSON nor text in UTF-8: "a gzip file", "UTF-16"; empty: nothing known.
std::string other_format(std::string_view content);

// Where the text stands in JSON lines.
struct TextKey {
  std::string name = "text";
  // Whose template writes conversations down. Empty: the key is for texts alone.
  std::filesystem::path model = {};
};

class TextFile {
 public:
  // Checks all of it: that it is UTF-8, and of JSON lines that each is an object with a string at the key or, if the first has a
  // list there, a conversation that the model's template takes. Its name (.jsonl, .ndjson, .json, with .gz or .zst behind it or
  // not) makes it JSON lines even if its first line is not. Throws InputError naming the file, and the line: what is wrong, other
  // formats, a file without text. Calls `tick` now and then.
  TextFile(const std::filesystem::path& path, ThreadPool& threads,
           const std::function<void()>& tick, const TextKey& key = {});

  const std::filesystem::path& path() const { return path_; }
  bool json_lines() const { return json_lines_; }
  // Conversations: what stands before and behind a text is written by their template, too.
  bool conversations() const { return template_.has_value(); }
  std::string description()
      const;  // "FILE: JSON lines, 600 documents", "FILE: gzip, plain text, 1 document"

  std::size_t documents() const { return begins_.size(); }
  // The text of a document, which is in the file, or put into `storage`. Safe in several threads.
  std::string_view document(std::size_t index, std::string& storage) const;
  // Bytes that document() has to read.
  std::size_t bytes_of(std::size_t index) const { return line(index).size(); }

  std::string_view content() const;  // every byte
  // Takes what was read out of this process's memory. It is read again when it is needed again.
  void release_pages() const { release_mapped_pages(file_.bytes()); }

 private:
  std::string_view line(std::size_t index) const;
  std::string where(std::size_t begin) const;  // "FILE:12: "
  std::string text_of(std::size_t index) const;
  void refuse_other_formats() const;
  void find_lines(const std::function<void()>& tick);
  void check_lines(ThreadPool& threads, const std::function<void()>& tick) const;
  void check_utf8(ThreadPool& threads, const std::function<void()>& tick) const;

  std::filesystem::path path_;
  MappedContent file_;
  std::string key_;
  std::optional<ChatTemplate> template_;
  bool json_lines_ = false;
  std::vector<std::uint64_t> begins_;  // of each document, in bytes
};

}  // namespace roundhouse
