// What lies in a Hugging Face directory beside weights, index and config: tokenizer files, chat templates, licences, code that
// config.json names (auto_map). An export carries it along.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

namespace roundhouse {

struct SideFiles {
  std::vector<std::string>
      carried;  // paths within the directory, sorted: "LICENSE", "templates/tool_use.jinja"
  std::vector<std::string>
      left;  // what stays behind though it is no weight: "original/ (a model of its own)"
};

// Left out without a word: weights of any framework, their indices, config.json, what describes another quantization, sums of
// an export, and hidden files. A folder that holds weights or a config.json is a model of its own and stays behind; so do the
// folder of a run of ours, the notes beside exports, and a file over 256 MiB. Links to files count as files, links to folders are not followed. Throws InputError naming a path that
// cannot be read.
SideFiles side_files(const std::filesystem::path& directory);

}  // namespace roundhouse
