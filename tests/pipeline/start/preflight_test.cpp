#include "pipeline/start/preflight.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/error.h"

namespace roundhouse {
namespace {

using testing::AllOf;
using testing::HasSubstr;

std::string error_of(const std::function<void()>& work) {
  try {
    work();
  } catch (const Error& error) {
    return error.what();
  }
  return "no error";
}

TEST(PreflightTest, TheLeastThatIsWrittenIsCodesAndWhatIsNotQuantized) {
  const ModelConfig model =
      read_model_config(std::filesystem::path(ROUNDHOUSE_SOURCE_DIR) / "tests/data/tiny-world");
  std::uint64_t linear = 0;
  for (const LinearSpec& spec : block_layout(model).linears)
    linear += static_cast<std::uint64_t>(spec.rows * spec.cols * model.blocks);
  RunConfig config;
  config.recipes = {parse_recipe({{"method", "rtn"}, {"bits", 4}})};
  EXPECT_EQ(least_bytes_written(config, model), linear / 2) << "records alone";
  config.export_formats = {"compressed-tensors"};
  const std::uint64_t packed = least_bytes_written(config, model);
  EXPECT_GT(packed, linear) << "twice the codes, and embedding, norms and head";
  config.export_formats = {"dense"};
  const std::uint64_t dense = least_bytes_written(config, model);
  EXPECT_EQ(dense - packed, linear * 2 - linear / 2);
  config.recipes.push_back(parse_recipe({{"method", "rtn"}, {"bits", 2}}));
  EXPECT_EQ(least_bytes_written(config, model), 2 * dense - linear / 4) << "half the codes";
}

TEST(PreflightTest, OnlyWhatIsMissingHasToFitOnTheDisk) {
  constexpr std::uint64_t kGiB = std::uint64_t{1} << 30;
  EXPECT_EQ(error_of([] { check_disk("runs/a", 10 * kGiB, 4 * kGiB, 6 * kGiB); }), "no error");
  EXPECT_EQ(error_of([] { check_disk("runs/a", 10 * kGiB, 11 * kGiB, 0); }), "no error");
  EXPECT_THAT(error_of([] { check_disk("runs/a", 10 * kGiB, 3 * kGiB, 6 * kGiB); }),
              AllOf(HasSubstr("runs/a"), HasSubstr("10.0 GiB"), HasSubstr("6.0 GiB")));
}

TEST(PreflightTest, ABlockHasToFitIntoMemory) {
  constexpr std::uint64_t kGiB = std::uint64_t{1} << 30;
  EXPECT_EQ(error_of([] { check_memory(kGiB, kGiB); }), "no error");
  EXPECT_THAT(error_of([] { check_memory(3 * kGiB, 2 * kGiB); }),
              AllOf(HasSubstr("3.0 GiB"), HasSubstr("2.0 GiB")));
}

}  // namespace
}  // namespace roundhouse
