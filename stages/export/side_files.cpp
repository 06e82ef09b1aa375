#include "stages/export/side_files.h"

#include <algorithm>
#include <array>
#include <string_view>

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

void collect(const fs::path& folder, const std::string& prefix, int depth, SideFiles& files) {
  for (const fs::directory_entry& entry : fs::directory_iterator(folder)) {
    const std::string name = entry.path().filename().string();
    const std::string path = prefix + name;
    if (name.starts_with('.') || name == "__pycache__") continue;
    if (entry.is_directory()) {
      if (entry.is_symlink()) {
        files.left.push_back(path + "/ (a link)");
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
    } else if (entry.file_size() > kMaxBytes) {
      files.left.push_back(path + " (" + std::to_string(entry.file_size() >> 20) + " MiB)");
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
