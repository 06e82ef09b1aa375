#include "pipeline/config/sections.h"

#include <algorithm>
#include <utility>

#include <fmt/format.h>

#include "base/error.h"
#include "pipeline/run/run_files.h"

namespace roundhouse {
namespace {

namespace fs = std::filesystem;

constexpr std::int64_t kMaxCalibrationTokens = std::int64_t{1} << 31;

}  // namespace

const std::string& name_of(Drawing drawing) {
  return names_of_drawings()[static_cast<std::size_t>(drawing)];
}

namespace {

// What is not given is as in `base`.
SampleOptions read_set(Section& section, SampleOptions base, InputFiles files, bool begun) {
  SampleOptions options = std::move(base);
  options.keys = section.path();
  // A run that has begun knows the text by its content, and needs it no more once the windows are drawn.
  if (!section.text("text", "").empty())
    options.text = section.file("text", begun ? InputFiles::kMayBeGone : files);
  options.text_key = section.text("text_key", options.text_key);
  options.samples = section.integer("samples", options.samples, 1, kMaxSamples);
  options.sequence_length =
      section.integer("sequence_length", options.sequence_length, 1, kMaxTokens);
  options.seed = section.integer<std::uint64_t>("seed", options.seed, 0, ~std::uint64_t{0});
  const int fewest = std::min(options.shards, options.samples);
  options.shards = section.integer("shards", fewest, 1, kMaxSamples);
  if (options.shards > options.samples) {
    fail(section.where("shards"), section.path_of("shards"),
         fmt::format("{} shards cannot be cut from {} samples", options.shards, options.samples));
  }
  const std::string drawing =
      section.one_of("drawing", name_of(options.drawing), names_of_drawings());
  options.drawing = static_cast<Drawing>(std::ranges::find(names_of_drawings(), drawing) -
                                         names_of_drawings().begin());
  if (std::int64_t{options.samples} * options.sequence_length > kMaxCalibrationTokens) {
    fail(section.where("samples"), section.path_of("samples"),
         fmt::format("{} samples of {} tokens are more than {} tokens", options.samples,
                     options.sequence_length, kMaxCalibrationTokens));
  }
  return options;
}

// `methods: [awq, llm-mq]`, of a set: those whose recipes look at it.
void read_methods(Section& section, const std::string& set, SetOfMethod& sets) {
  const std::vector<YamlNode>* const methods = section.sequence("methods");
  if (methods == nullptr) return;
  const std::string path = section.path_of("methods");
  for (const YamlNode& node : *methods) {
    const std::string method = Section::scalar(node, path);
    try {
      (void)parse_recipe({{"method", method}});
    } catch (const RecipeError& error) {
      fail(node.where, path, error.what);
    }
    const auto [at, added] = sets.emplace(method, set);
    if (!added) {
      fail(node.where, path,
           fmt::format("{} looks at the set {} already", method, in_quotes(at->second)));
    }
  }
}

Section section_of(Section& top, const std::string& set) {
  Section many = top.section("calibrations");
  const bool named = many.node(set) != nullptr;
  return set != kDefaultCalibration || named ? many.section(set) : top.section("calibration");
}

}  // namespace

SetOfMethod read_calibrations(Section& top, InputFiles files, RunConfig& config) {
  Section many = top.section("calibrations");
  if (many.node(kDefaultCalibration) != nullptr && top.section("calibration").given()) {
    fail(many.where(kDefaultCalibration), many.path_of(kDefaultCalibration),
         "stands beside `calibration`, which is the same set");
  }
  const auto is_there = [&](const std::string& file) {
    std::error_code ignored;
    return fs::exists(config.run / file, ignored);
  };
  SetOfMethod sets;
  Section standard = section_of(top, kDefaultCalibration);
  config.calibration = read_set(standard, config.calibration, files,
                                is_there("calibration.h5") || is_there("gradients"));
  read_methods(standard, kDefaultCalibration, sets);
  standard.finish();
  for (const std::string& name : many.keys()) {
    if (name == kDefaultCalibration) continue;
    Section section = many.section(name);
    if (!is_plain_name(name)) {
      fail(many.where(name), section.path(), "a set's name has to be one of a file");
    }
    config.calibrations[name] =
        read_set(section, config.calibration, files, is_there(calibration_key(name) + ".h5"));
    read_methods(section, name, sets);
    section.finish();
  }
  many.finish();
  return sets;
}

void check_calibrations(Section& top, const RunConfig& config) {
  for (const Recipe& recipe : config.recipes) {
    const auto& gradients = recipe.needs.gradients;
    const auto check_text = [&](const std::string& set) {
      if (!calibration_set(config, set).text.empty()) return;
      const Section section = section_of(top, set);
      fail(section.where("text"), section.path_of("text"),
           "is missing: recipe " + in_quotes(recipe.name) + " needs calibration text");
    };
    if (recipe.needs.streams()) check_text(recipe.calibration);
    if (gradients) check_text(kDefaultCalibration);
    if (!gradients || gradients->samples >= config.calibration.shards) continue;
    const auto at = recipe.where.find("gradients");
    throw InputError(
        fmt::format("{}: {} samples cannot be cut into the {} shards of calibration.shards",
                    at != recipe.where.end() ? at->second : recipe.name, gradients->samples,
                    config.calibration.shards));
  }
}

}  // namespace roundhouse
