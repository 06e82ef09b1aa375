#include "model/block/model_units.h"

#include <gtest/gtest.h>

#include "model/causal_lm.h"
#include "tests/model/model_files.h"

namespace roundhouse {
namespace {

TEST(ModelUnitsTest, AUnitIsCalledWhatItIs) {
  EXPECT_EQ(unit_name(3, {}), "block 3");
  EXPECT_EQ(unit_name(3, {"lm_head"}), "head");
  EXPECT_EQ(unit_name(3, {"embed_tokens"}), "embedding");
  EXPECT_EQ(unit_name(3, {"lm_head", "embed_tokens"}), "embedding and head");
  EXPECT_EQ(unit_name(3, {"what a journal may say"}), "block 3");

  EXPECT_EQ(unit_name(1, 2, {"lm_head"}), "block 1");
  EXPECT_EQ(unit_name(2, 2, {"lm_head"}), "head");
}

TEST(ModelUnitsTest, TheBlockAtWorkIsCalledTheSame) {
  const TemporaryFolder directory;
  const nlohmann::json config = small_config();
  write_model(directory.path(), config, formula_tensors(config, DType::kF16));
  const CausalLM model(directory.path());
  const auto backend = make_backend("cpu", {});
  const auto decoder = make_decoder_block(model.config(), 12, *backend);
  const auto blocks = static_cast<int>(model.config().blocks);
  const std::vector<std::vector<std::string>> includes = {
      {}, {"lm_head"}, {"embed_tokens"}, {"embed_tokens", "lm_head"}};
  for (const std::vector<std::string>& include : includes) {
    const ModelUnits units(*decoder, blocks, include);
    ASSERT_EQ(units.count(), unit_count(blocks, include));
    for (int unit = 0; unit < units.count(); ++unit)
      EXPECT_EQ(unit_name(unit, units.of(unit)), unit_name(unit, blocks, include));
  }
}

}  // namespace
}  // namespace roundhouse
