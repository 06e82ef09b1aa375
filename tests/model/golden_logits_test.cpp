// Whole models against tests/golden/logits.json, which make_logits.py computes in float64 from the
// formulas.
#include <algorithm>
#include <cmath>
#include <fstream>

#include <gtest/gtest.h>

#include "model/causal_lm.h"
#include "tests/model/model_files.h"
#include "tests/source_folder.h"

namespace roundhouse {
namespace {

using nlohmann::json;

class GoldenLogitsTest : public testing::TestWithParam<std::string> {};

TEST_P(GoldenLogitsTest, AgreeInFloat32) {
  const std::string& name = GetParam();
  const json golden =
      json::parse(std::ifstream(source_folder() / "tests/golden/logits.json")).at(name);
  const TemporaryFolder directory;
  std::filesystem::path path = tiny_world();
  if (golden.contains("directory")) {
    path = source_folder() / "tests/golden" / golden.at("directory").get<std::string>();
  } else if (golden.contains("config")) {
    path = directory.path();
    const DType type = dtype_from_name(golden.at("dtype").get<std::string>()).value();
    write_model(path, golden.at("config"), formula_tensors(golden.at("config"), type),
                golden.at("shards"));
  }

  const auto backend = make_backend("cpu", {});
  const CausalLM model(path);
  BlockState state;
  state.sequences = golden.at("sequences");
  state.length = golden.at("length");
  state.residual =
      model.embed(formula_tokens(name, static_cast<std::size_t>(state.sequences * state.length),
                                 model.config().vocabulary),
                  state.length, *backend);
  const auto block = make_decoder_block(model.config(), state.length, *backend);
  for (int i = 0; i < model.config().blocks; ++i) {
    const BlockWeights weights = block->load(model.checkpoint(), i, *backend);
    block->forward(weights, state, *backend);
  }
  const Tensor logits =
      model.logits(model.load_head(*backend), std::as_const(state.residual).view(), *backend);
  std::vector<float> values(static_cast<std::size_t>(logits.rows() * logits.cols()));
  backend->download(logits.view().data, std::as_writable_bytes(std::span(values)));

  // Ours is float32 (2^-24 = 6e-8 a rounding): on logits of 1 to 25, after sums of some hundred
  // terms in each of up to 6 blocks, rounding leaves about 1e-5. A wrong formula (an epsilon, a
  // position, a head) moves them by 1e-2 and more.
  constexpr double kTolerance = 1e-4;
  double largest = 0;
  for (std::size_t s = 0; s < golden.at("sequences"); ++s) {
    for (std::size_t p = 0; p < golden.at("positions").size(); ++p) {
      const std::size_t row =
          s * static_cast<std::size_t>(state.length) + golden.at("positions")[p].get<std::size_t>();
      const float* at = values.data() + row * static_cast<std::size_t>(logits.cols());
      const auto compare = [&](double ours, double theirs, const std::string& what) {
        largest = std::max(largest, std::abs(ours - theirs));
        EXPECT_NEAR(ours, theirs, kTolerance)
            << "sequence " << s << ", row " << row << ", " << what;
      };
      for (std::size_t i = 0; i < golden.at("ids").size(); ++i) {
        const auto id = golden.at("ids")[i].get<std::size_t>();
        compare(at[id], golden.at("logits")[s][p][i], "id " + std::to_string(id));
      }
      double sum = 0;
      for (std::int64_t v = 0; v < logits.cols(); ++v) sum += std::exp(static_cast<double>(at[v]));
      compare(std::log(sum), golden.at("log_sum_exp")[s][p], "log of the sum of exp");
    }
  }
  RecordProperty("largest_difference", std::to_string(largest * 1e6) + "e-6");
  EXPECT_LT(largest, kTolerance);
}

INSTANTIATE_TEST_SUITE_P(Models, GoldenLogitsTest,
                         testing::Values("tiny-world", "mha-tied", "gqa-sharded", "sliding-window",
                                         "opt", "opt-norm-last", "opt-bare", "opt-no-final-norm",
                                         "opt-bin", "mistral-bin-sharded", "llama-biases", "llama3",
                                         "llama3-parameters", "rope-linear", "rope-dynamic",
                                         "rope-yarn", "rope-yarn-scales", "mistral-no-window",
                                         "qwen2", "qwen2-window", "qwen3", "phi3", "phi3-long",
                                         "phi3-short", "olmo2", "granite", "gemma2", "gemma3",
                                         "gemma3-parameters"),
                         [](const auto& instance) {
                           std::string name = instance.param;
                           std::ranges::replace(name, '-', '_');
                           return name;
                         });

}  // namespace
}  // namespace roundhouse
