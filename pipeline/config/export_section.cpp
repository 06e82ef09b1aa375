#include "pipeline/config/sections.h"

#include <algorithm>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "base/error.h"
#include "stages/export/engines.h"

namespace roundhouse {
namespace {

// A list of different words out of `known`.
std::vector<std::string> read_names(Section& section, const std::string& key,
                                    const std::vector<std::string>& known) {
  std::vector<std::string> names;
  if (const std::vector<YamlNode>* nodes = section.sequence(key)) {
    for (const YamlNode& node : *nodes) {
      const std::string name = Section::scalar(node, section.path_of(key));
      if (std::ranges::find(known, name) == known.end()) {
        fail(node.where, section.path_of(key),
             fmt::format("{} is not one of {}", in_quotes(name), fmt::join(known, ", ")));
      }
      if (std::ranges::find(names, name) != names.end()) {
        fail(node.where, section.path_of(key), in_quotes(name) + " stands there twice");
      }
      names.push_back(name);
    }
  }
  return names;
}

// A run that has begun keeps what it was started with, whatever is known of engines by now.
void check_engines(const Section& section, const RunConfig& config) {
  for (const Recipe& recipe : config.recipes) {
    for (const std::string& format : config.export_formats) {
      try {
        check_served(recipe, format, config.export_for);
      } catch (const InputError& error) {
        fail(section.where("for"), section.path_of("for"), error.what());
      }
    }
  }
}

}  // namespace

void read_export(Section section, InputFiles files, RunConfig& config) {
  config.export_formats = read_names(section, "formats", export_formats());
  config.export_for = read_names(section, "for", engine_names());
  if (files == InputFiles::kMustExist) check_engines(section, config);
  const std::string type =
      section.one_of("dtype", "source", {"source", "float16", "bfloat16", "float32"});
  for (const DType each : {DType::kF16, DType::kBF16, DType::kF32}) {
    if (type == torch_name_of(each)) config.export_dtype = each;
  }
  config.export_shard_gib = section.number("shard_gib", config.export_shard_gib, 1e-6, 1e3);
  section.finish();
}

}  // namespace roundhouse
