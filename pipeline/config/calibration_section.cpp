#include "pipeline/config/sections.h"

#include <algorithm>

#include <fmt/format.h>

#include "base/error.h"

namespace roundhouse {
namespace {

namespace fs = std::filesystem;

constexpr std::int64_t kMaxCalibrationTokens = std::int64_t{1} << 31;

const std::vector<std::string> kDrawings = {"windows", "packed", "concatenated"};  // by Drawing

}  // namespace

const std::string& name_of(Drawing drawing) { return kDrawings[static_cast<std::size_t>(drawing)]; }

void read_calibration(Section section, InputFiles files, RunConfig& config) {
  SampleOptions& options = config.calibration;
  const auto needy = std::ranges::find_if(
      config.recipes, [](const Recipe& recipe) { return recipe.needs.calibration(); });
  if (!section.text("text", "").empty()) {
    // A run that has begun knows the text by its content, and needs it no more once the windows are drawn.
    std::error_code ignored;
    const bool begun = fs::exists(config.run / "calibration.h5", ignored) ||
                       fs::exists(config.run / "gradients", ignored);
    options.text = section.file("text", begun ? InputFiles::kMayBeGone : files);
  } else if (needy != config.recipes.end()) {
    fail(section.where("text"), section.path_of("text"),
         "is missing: recipe " + in_quotes(needy->name) + " needs calibration text");
  }
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
  for (const Recipe& recipe : config.recipes) {
    if (!recipe.needs.gradients || recipe.needs.gradients->samples >= options.shards) continue;
    const auto at = recipe.where.find("gradients");
    throw InputError(
        fmt::format("{}: {} samples cannot be cut into the {} shards of calibration.shards",
                    at != recipe.where.end() ? at->second : recipe.name,
                    recipe.needs.gradients->samples, options.shards));
  }
  const std::string drawing = section.one_of("drawing", name_of(options.drawing), kDrawings);
  options.drawing = static_cast<Drawing>(std::ranges::find(kDrawings, drawing) - kDrawings.begin());
  if (std::int64_t{options.samples} * options.sequence_length > kMaxCalibrationTokens) {
    fail(section.where("samples"), section.path_of("samples"),
         fmt::format("{} samples of {} tokens are more than {} tokens", options.samples,
                     options.sequence_length, kMaxCalibrationTokens));
  }
  section.finish();
}

}  // namespace roundhouse
