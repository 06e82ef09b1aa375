#include "stages/export/side_files.h"

#include <algorithm>
#include <array>
#include <string_view>

#include <fmt/format.h>

#include "base/file.h"

namespace roundhouse {
namespace {

namespace fs = std::filesystem;

constexpr std::uintmax_t kMaxBytes = std::uintmax_t{256} << 20;
constexpr int kMaxDepth = 8;
constexpr std::array<std::string_view, 17> kWeights = {
    ".safetensors", ".bin", ".pt",      ".pth",       ".ckpt", ".gguf",
    ".ggml",        ".h5",  ".msgpack", ".onnx",      ".data", ".onnx_data",
    ".ot",          ".npz", ".tflite",  ".llamafile", ".nemo"};
constexpr std::array<std::string_view, 5> kOurs = {"config.json", "quantize_config.json",
                                                   "quant_config.json", "quantization_config.json",
                                                   "SHA256SUMS"};

bool is_weights(const std::string& name) {
  return name.ends_with(".index.json") ||
         std::ranges::any_of(kWeights, [&](std::string_view end) { return name.ends_with(end); });
}

bool is_model(const fs::path& folder) {
  return std::ranges::any_of(fs::directory_iterator(folder), [](const fs::directory_entry& entry) {
    const std::string name = entry.path().filename().string();
    return name == "config.json" || is_weights(name);
  });
}

// A run writes into its folder while it goes on: what was carried along would be another thing each time.
bool is_run(const fs::path& folder) {
  constexpr std::array kFiles = {"identity.json", "config.yaml", "journal.jsonl", "lease"};
  return std::ranges::count_if(kFiles,
                               [&](const char* name) { return fs::exists(folder / name); }) > 1;
}

void collect(const fs::path& folder, const std::string& prefix, int depth, SideFiles& files) {
  for (const fs::directory_entry& entry : fs::directory_iterator(folder)) {
    const std::string name = entry.path().filename().string();
    const std::string path = prefix + name;
    if (name.starts_with('.') || name == "__pycache__") continue;
    if (entry.is_directory()) {
      if (entry.is_symlink()) {
        files.left.push_back(path + "/ (a link)");
      } else if (is_run(entry.path())) {
        files.left.push_back(path + "/ (a run)");
      } else if (is_model(entry.path())) {
        files.left.push_back(path + "/ (a model of its own)");
      } else if (depth == kMaxDepth) {
        files.left.push_back(path + "/ (too deep)");
      } else {
        collect(entry.path(), path + "/", depth + 1, files);
      }
    } else if (!entry.is_regular_file()) {
      files.left.push_back(path + " (not a file)");
    } else if (is_weights(name) ||
               (prefix.empty() && std::ranges::find(kOurs, name) != kOurs.end())) {
      continue;
    } else if (name.ends_with(".json") &&
               fs::exists(fs::path(entry.path()).replace_extension() / "SHA256SUMS")) {
      files.left.push_back(path + " (the note of an export)");
    } else if (entry.file_size() > kMaxBytes) {
      files.left.push_back(fmt::format("{} ({} MiB)", path, entry.file_size() >> 20));
    } else {
      files.carried.push_back(path);
    }
  }
}

}  // namespace

SideFiles side_files(const fs::path& directory) {
  SideFiles files;
  with_file_errors_named([&] { collect(directory, "", 0, files); });
  std::ranges::sort(files.carried);
  std::ranges::sort(files.left);
  return files;
}

}  // namespace roundhouse
