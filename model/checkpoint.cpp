#include "model/checkpoint.h"

#include <string_view>
#include <utility>

#include "base/error.h"
#include "model/json_file.h"

namespace roundhouse {
namespace {

constexpr const char* kSingleFile = "model.safetensors";
constexpr const char* kIndexFile = "model.safetensors.index.json";
constexpr std::size_t kMaxIndexBytes = std::size_t{1} << 28;

// Early LLaMA files carry the rotary frequencies, which follow from the config.
bool is_ignored(std::string_view tensor) { return tensor.ends_with(".rotary_emb.inv_freq"); }

bool is_plain_file_name(std::string_view name) {
  return !name.empty() && name != "." && name != ".." &&
         name.find_first_of(std::string_view("/\\\0", 3)) == name.npos;
}

std::string shape_text(const Shape& shape) {
  std::string text = "[";
  for (std::size_t i = 0; i < shape.size(); ++i)
    text += (i > 0 ? ", " : "") + std::to_string(shape[i]);
  return text + "]";
}

}  // namespace

Checkpoint::Checkpoint(const std::filesystem::path& directory) : directory_(directory) {
  if (std::filesystem::exists(directory / kSingleFile)) {
    const auto& file = files_[kSingleFile] =
        std::make_unique<SafetensorsFile>(directory / kSingleFile);
    for (const std::string& name : file->names()) {
      if (!is_ignored(name)) file_of_[name] = file.get();
    }
    return;
  }

  const std::filesystem::path index_path = directory / kIndexFile;
  if (!std::filesystem::exists(index_path)) {
    const bool has_bin = std::filesystem::exists(directory / "pytorch_model.bin") ||
                         std::filesystem::exists(directory / "pytorch_model.bin.index.json");
    throw InputError(
        directory.string() + ": no " + kSingleFile + " and no " + kIndexFile +
        (has_bin ? " (pytorch_model.bin is not read: convert it to safetensors)" : ""));
  }
  const nlohmann::json index = read_json_file(index_path, kMaxIndexBytes);
  const auto fail = [&](const std::string& what) {
    throw InputError(index_path.string() + ": " + what);
  };
  if (!index.is_object()) fail("not a JSON object");
  const auto map = index.find("weight_map");
  if (map == index.end() || !map->is_object()) fail("no object \"weight_map\"");
  for (const auto& [name, value] : map->items()) {
    if (is_ignored(name)) continue;
    if (!value.is_string() || !is_plain_file_name(value.get_ref<const std::string&>())) {
      fail("weight_map: tensor " + in_quotes(name) + ": " +
           (value.is_string() ? in_quotes(value.get<std::string>()) : "this") +
           " is not a plain file name");
    }
    auto& file = files_[value.get<std::string>()];
    if (!file) file = std::make_unique<SafetensorsFile>(directory / value.get<std::string>());
    if (!file->has(name))
      fail("weight_map: tensor " + in_quotes(name) + " is not in " + file->path().string());
    file_of_[name] = file.get();
  }
}

std::vector<std::string> Checkpoint::names() const {
  std::vector<std::string> names;
  for (const auto& [name, file] : file_of_) names.push_back(name);
  return names;
}

bool Checkpoint::has(const std::string& name) const { return file_of_.contains(name); }

HostView Checkpoint::view(const std::string& name) const {
  const auto found = file_of_.find(name);
  if (found == file_of_.end())
    throw InputError(directory_.string() + ": no tensor " + in_quotes(name));
  return found->second->view(name);
}

HostView Checkpoint::weight(const std::string& name, const Shape& shape) const {
  const HostView found = view(name);
  const auto fail = [&](const std::string& what) {
    throw InputError(file_of_.at(name)->path().string() + ": tensor " + in_quotes(name) + ": " +
                     what);
  };
  if (found.shape != shape)
    fail("shape " + shape_text(found.shape) + ", but config.json makes it " + shape_text(shape));
  if (found.type != DType::kF32 && found.type != DType::kF16 && found.type != DType::kBF16) {
    fail("type " + std::string(name_of(found.type)) +
         " is not that of a weight (F32, F16 or BF16)");
  }
  return found;
}

}  // namespace roundhouse
