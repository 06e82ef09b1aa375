// Gradients of whole models: against torch's autograd, against difference quotients of a plain forward pass in double, and with the
// same bits on any number of ranks and threads.
#include "stages/sensitivity/gradient_walk.h"

#include <cmath>
#include <fstream>
#include <map>

#include <gmock/gmock.h>

#include "base/error.h"
#include "base/numerical_error.h"
#include "tests/comm/mpi_world.h"
#include "tests/model/reference_model.h"
#include "tests/reference/gradients.h"
#include "tests/stages/quantize_world.h"

namespace roundhouse {
namespace {

using nlohmann::json;
using reference::Matrix;

// By linear ("model.layers.0.self_attn.q_proj"), whole, on every rank; empty where it was not asked for.
struct Sums {
  std::map<std::string, std::vector<float>> sum, squares;
  std::vector<int> order;    // blocks
  std::vector<json> events;  // of the loss
  std::vector<json> dropped;
};

struct Settings {
  GradientSums wanted = {.sum = true, .squares = true};
  int threads = 1;
  int shards = 3;
  std::size_t saved_activation_bytes = std::size_t{1} << 30;
  std::size_t budget = std::size_t{1} << 30;
};

Sums walk(Communicator& team, const std::filesystem::path& path, std::int64_t count,
          std::int64_t length, const std::vector<std::int32_t>& ids,
          const Settings& settings = {}) {
  const auto backend = make_backend("cpu", {.threads = settings.threads});
  const CausalLM model(path);
  const auto decoder = make_decoder_block(model.config(), length, *backend);
  const Samples samples(count, length, settings.shards, ids);
  ActivationBudget budget(settings.budget, std::filesystem::temp_directory_path());
  RecordingMonitor monitor;
  Sums result;
  const auto take = [&](const BlockSite& site, BlockWeights& weights, BlockGradients& gradients) {
    result.order.push_back(site.block);
    EXPECT_EQ(weights.linears.size(), decoder->linears().size());
    const json dropped = gradients.settle_dropped();
    if (dropped.contains("dropped_samples")) {
      for (const json& each : dropped["dropped_samples"]) result.dropped.push_back(each);
    }
    for (std::size_t i = 0; i < decoder->linears().size(); ++i) {
      const LinearSpec& spec = decoder->linears()[i];
      const auto size = static_cast<std::size_t>(spec.rows * spec.cols);
      std::vector<float> sum(size), squares(size);
      for (const auto& tile : gradients.finish(static_cast<int>(i))) {
        EXPECT_EQ(tile.first / kTileRows % team.size(), team.rank()) << "another rank's rows";
        const auto put = [&](const ConstMatrix& rows, std::vector<float>& into) {
          if (!rows.data) return;
          backend->download(rows.data, std::as_writable_bytes(std::span(into).subspan(
                                           static_cast<std::size_t>(tile.first * spec.cols),
                                           static_cast<std::size_t>(rows.rows * rows.cols))));
        };
        put(tile.sum, sum);
        put(tile.squares, squares);
      }
      // Rows that are another rank's are zero here.
      const auto together = [&](std::vector<float>& values) {
        for (const auto& theirs : team.all_gather(std::as_bytes(std::span(values)))) {
          std::vector<float> other(size);
          std::ranges::copy(theirs, std::as_writable_bytes(std::span(other)).begin());
          for (std::size_t j = 0; j < size; ++j) {
            if (other[j] != 0.0f) values[j] = other[j];
          }
        }
      };
      together(sum);
      together(squares);
      const std::string name = decoder->prefix(site.block) + "." + spec.name;
      if (settings.wanted.sum) result.sum[name] = sum;
      if (settings.wanted.squares) result.squares[name] = squares;
    }
  };
  EXPECT_TRUE(walk_gradients({.backend = *backend,
                              .team = team,
                              .device_team = team,
                              .model = model,
                              .decoder = *decoder,
                              .samples = samples,
                              .budget = budget,
                              .saved_activation_bytes = settings.saved_activation_bytes,
                              .monitor = monitor,
                              .wanted = settings.wanted,
                              .blocks = {0, static_cast<int>(model.config().blocks)},
                              .take = take}));
  for (const json& event : monitor.events) {
    if (event.at("event") == "loss") result.events.push_back(event);
  }
  if (team.rank() == 0) {
    EXPECT_EQ(monitor.events.back().at("event"), "gradients");
    EXPECT_GT(monitor.events.back().at("phases").at("backward").get<double>(), 0.0);
  }
  return result;
}

// Near, relative to the largest element that is wanted.
void expect_near(const std::vector<float>& got, const std::vector<double>& want, double tolerance,
                 const std::string& what) {
  ASSERT_EQ(got.size(), want.size()) << what;
  double largest = 0.0;
  for (const double value : want) largest = std::max(largest, std::abs(value));
  ASSERT_GT(largest, 0.0) << what;
  for (std::size_t i = 0; i < want.size(); ++i) {
    ASSERT_NEAR(got[i], want[i], tolerance * largest) << what << ", element " << i;
  }
}

class WholeModelTest : public testing::TestWithParam<const char*> {
 protected:
  WholeModelTest() {
    std::ifstream file(source_folder() / "tests/golden/model_gradients.json");
    golden_ = json::parse(file).at(GetParam());
    tensors_ = formula_tensors(golden_.at("config"), DType::kF32);
    write_model(directory_.path(), golden_.at("config"), tensors_);
    sequences_ = golden_.at("sequences");
    length_ = golden_.at("length");
    ids_ = formula_tokens(GetParam(), static_cast<std::size_t>(sequences_ * length_),
                          golden_.at("config").at("vocab_size"));
  }
  Sums walk_alone(const Settings& settings = {}) const {
    const auto alone = make_local_communicator();
    return walk(*alone, directory_.path(), sequences_, length_, ids_, settings);
  }

  TemporaryFolder directory_;
  json golden_;
  Tensors tensors_;
  std::int64_t sequences_, length_;
  std::vector<std::int32_t> ids_;
};

INSTANTIATE_TEST_SUITE_P(Architectures, WholeModelTest,
                         testing::Values("llama", "mistral", "qwen3", "phi3", "opt",
                                         "opt-norm-last"),
                         [](const auto& instance) {
                           std::string name = instance.param;
                           std::ranges::replace(name, '-', '_');
                           return name;
                         });

TEST_P(WholeModelTest, GradientsEqualTorchs) {
  const Sums got = walk_alone();
  EXPECT_EQ(got.order, (std::vector<int>{1, 0}));
  ASSERT_EQ(got.sum.size(), golden_.at("linears").size());
  for (const auto& [name, linear] : golden_.at("linears").items()) {
    expect_near(got.sum.at(name), linear.at("sum"), 2e-5, name + ", sum");
    expect_near(got.squares.at(name), linear.at("squares"), 2e-5, name + ", squares");
  }
  double loss = 0.0;
  for (const double of_sequence : golden_.at("losses")) {
    loss += of_sequence / static_cast<double>(sequences_);
  }
  ASSERT_EQ(got.events.size(), 1u);
  EXPECT_NEAR(got.events.front().at("mean").get<double>(), loss, 1e-6 * loss);
  EXPECT_EQ(got.events.front().at("samples"), sequences_);
}

TEST_P(WholeModelTest, GradientsAreTheDifferenceQuotients) {
  const CausalLM model(directory_.path());
  reference::Weights weights = reference::weights_of(tensors_);
  const Sums got = walk_alone();
  Matrix one(1, 1);
  one(0, 0) = 1.0;
  for (const auto& [name, sum] : got.sum) {
    Matrix& weight = weights.at(name + ".weight");
    const Matrix original = weight;
    std::vector<double> want_sum(sum.size()), want_squares(sum.size());
    for (std::int64_t s = 0; s < sequences_; ++s) {
      const auto first = ids_.begin() + s * length_;
      const std::vector<std::int32_t> ids(first, first + length_);
      const Matrix gradient = reference::numeric_gradient(
          [&](const Matrix& at) {
            weight = at;
            Matrix loss(1, 1);
            loss(0, 0) = reference::model_loss(model.config(), weights, ids);
            return loss;
          },
          original, one);
      weight = original;
      for (std::size_t i = 0; i < sum.size(); ++i) {
        want_sum[i] += gradient.values[i];
        want_squares[i] += gradient.values[i] * gradient.values[i];
      }
    }
    expect_near(sum, want_sum, 2e-5, name + ", sum");
    expect_near(got.squares.at(name), want_squares, 2e-5, name + ", squares");
  }
}

// One sum does not depend on the other, nor either on threads, on what a forward pass saves, or on where activations are kept.
TEST_P(WholeModelTest, SameBitsHoweverItIsRun) {
  const Sums want = walk_alone();
  const Sums sum = walk_alone({.wanted = {.sum = true}, .threads = 2, .saved_activation_bytes = 0});
  const Sums squares = walk_alone({.wanted = {.squares = true}, .threads = 3, .budget = 0});
  EXPECT_EQ(sum.sum, want.sum);
  EXPECT_TRUE(sum.squares.empty());
  EXPECT_EQ(squares.squares, want.squares);
  EXPECT_EQ(squares.events, want.events);
}

TEST(GradientWalkTest, SameBitsOnAnyNumberOfRanks) {
  const auto path = QuantizeWorld::bundled_model();
  const auto alone = make_local_communicator();
  for (const auto& [count, length, shards] :
       std::vector<std::tuple<std::int64_t, std::int64_t, int>>{{6, 24, 5}, {4, 32, 2}}) {
    const auto ids = random_ids(count * length, 11);
    const Sums want = walk(*alone, path, count, length, ids, {.threads = 2, .shards = shards});
    const Sums got = walk(test_world(), path, count, length, ids, {.shards = shards});
    EXPECT_EQ(got.order, want.order);
    EXPECT_EQ(got.sum, want.sum) << shards << " shards";
    EXPECT_EQ(got.squares, want.squares) << shards << " shards";
    if (test_world().rank() == 0) {
      EXPECT_EQ(got.events, want.events);
    }
  }
}

// A model in which the sum of token 7 and position 3 is infinite; two rows of the table of positions belong to none.
void write_overflowing_model(const std::filesystem::path& folder) {
  json config = small_opt_config();
  config["torch_dtype"] = "float32";
  config["tie_word_embeddings"] = false;
  Tensors tensors = formula_tensors(config, DType::kF32);
  tensors.at("model.decoder.embed_tokens.weight").as<float>()[7 * 32] = 3e38f;
  tensors.at("model.decoder.embed_positions.weight").as<float>()[(2 + 3) * 32] = 1e38f;
  write_model(folder, config, tensors);
}

constexpr std::int64_t kOfOverflow = 6;  // tokens of a sample
std::vector<std::int32_t> samples_of_ones(std::size_t count,
                                          const std::vector<std::size_t>& overflowing) {
  std::vector<std::int32_t> ids(count * kOfOverflow, 1);
  for (std::size_t s = 0; s < count; ++s)
    ids[s * kOfOverflow] = static_cast<std::int32_t>(2 + s % 5);
  for (const std::size_t s : overflowing) ids[s * kOfOverflow + 3] = 7;
  return ids;
}

TEST(GradientWalkTest, ASampleThatIsNotFiniteIsLeftOutAndNamed) {
  const TemporaryFolder folder;
  write_overflowing_model(folder.path());
  const auto alone = make_local_communicator();
  const auto ids = samples_of_ones(11, {4});
  std::map<std::string, std::vector<double>> want;
  for (std::size_t s = 0; s < 11; ++s) {
    if (s == 4) continue;
    const auto first = ids.begin() + static_cast<std::ptrdiff_t>(s * kOfOverflow);
    const Sums one =
        walk(*alone, folder.path(), 1, kOfOverflow, {first, first + kOfOverflow}, {.shards = 1});
    for (const auto& [name, sum] : one.sum) {
      want[name].resize(sum.size());
      for (std::size_t i = 0; i < sum.size(); ++i) want[name][i] += sum[i];
    }
  }
  const Sums got = walk(test_world(), folder.path(), 11, kOfOverflow, ids);
  for (const auto& [name, sum] : got.sum) expect_near(sum, want.at(name), 2e-5, name);
  ASSERT_EQ(got.dropped.size(), got.sum.size());
  for (const json& each : got.dropped) EXPECT_EQ(each.at("samples"), json({4})) << each;
  if (test_world().rank() == 0) {
    EXPECT_EQ(got.events.front().at("not_finite"), 1);
    EXPECT_TRUE(std::isfinite(got.events.front().at("mean").get<double>()));
  }
}

TEST(GradientWalkTest, MoreThanATenthCannotBeLeftOut) {
  const TemporaryFolder folder;
  write_overflowing_model(folder.path());
  std::string said = "nothing";
  try {
    (void)walk(test_world(), folder.path(), 11, kOfOverflow, samples_of_ones(11, {2, 9}));
  } catch (const UnquantizableError& error) {
    said = error.what();
  }
  EXPECT_THAT(said, testing::HasSubstr("2 of 11 samples"));
}

}  // namespace
}  // namespace roundhouse
