#include "stages/evaluate/log_likelihood.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <random>

#include "base/error.h"
#include "comm/launcher.h"
#include "model/tokenizer/tokenizer.h"
#include "stages/evaluate/tasks.h"
#include "tests/base/temporary_folder.h"
#include "tests/comm/mpi_world.h"
#include "tests/source_folder.h"

namespace roundhouse {
namespace {

const std::filesystem::path kModel = source_folder() / "tests/data/tiny-world";

class LogLikelihoodTest : public testing::Test {
 protected:
  std::vector<LogLikelihood> measure(std::span<const ScoredSequence> sequences,
                                     Communicator& world) {
    NullMonitor monitor;
    ActivationBudget budget(std::size_t{1} << 32, folder_.path());
    return measure_log_likelihoods(
        model_, *decoder_,
        [&](int block) { return decoder_->load(model_.checkpoint(), block, *backend_); }, sequences,
        Greedy::kYes, *backend_, world, budget, monitor);
  }

  // Logits of every row of a sequence that goes through the model alone.
  std::vector<std::vector<float>> logits_of(const std::vector<std::int32_t>& ids) {
    BlockState state;
    state.residual = model_.embed(ids, std::ssize(ids), *backend_);
    state.sequences = 1;
    state.length = std::ssize(ids);
    for (int b = 0; b < model_.config().blocks; ++b)
      decoder_->forward(decoder_->load(model_.checkpoint(), b, *backend_), state, *backend_);
    const CausalLM::Head head = model_.load_head(*backend_);
    const Tensor logits = model_.logits(head, std::as_const(state.residual).view(), *backend_);
    std::vector<std::vector<float>> rows;
    for (std::int64_t r = 0; r < logits.rows(); ++r) {
      const float* row = logits.f32() + r * logits.cols();
      rows.emplace_back(row, row + logits.cols());
    }
    return rows;
  }

  std::vector<std::int32_t> random_ids(std::size_t count) {
    std::uniform_int_distribution<std::int32_t> any(3, 1023);
    std::vector<std::int32_t> ids(count);
    for (std::int32_t& id : ids) id = any(random_);
    return ids;
  }

  // Of many lengths; some rows scored twice, some not; more rows of one sequence than the head takes at once.
  std::vector<ScoredSequence> sequences() {
    std::vector<ScoredSequence> all;
    for (const std::size_t length : {1, 7, 512, 30, 31, 30, 200, 512, 3, 90, 512, 64, 511, 5}) {
      ScoredSequence sequence{random_ids(length), {}};
      sequence.scored.push_back({static_cast<std::int64_t>(length - 1), {5}});
      sequence.scored.push_back({static_cast<std::int64_t>(length - 1), {900}});
      sequence.scored.push_back({0, random_ids(length)});
      sequence.scored.back().targets[length / 2] = -1;
      all.push_back(sequence);
    }
    return all;
  }

  std::mt19937 random_{7};
  TemporaryFolder folder_;
  CausalLM model_{kModel};
  std::unique_ptr<Backend> backend_ = make_backend("cpu", {.threads = 1});
  std::unique_ptr<DecoderBlock> decoder_ = make_decoder_block(model_.config(), 512, *backend_);
};

TEST_F(LogLikelihoodTest, IsThatOfEachSequenceAlone) {
  if (test_world().size() > 1) GTEST_SKIP() << "once is enough";
  std::vector<ScoredSequence> all = sequences();
  // A greedy continuation, and one that is greedy but for its first token.
  const auto logits = logits_of(all[3].ids);
  std::vector<std::int32_t> likeliest;
  for (const std::vector<float>& row : logits)
    likeliest.push_back(static_cast<std::int32_t>(std::ranges::max_element(row) - row.begin()));
  all[3].scored.push_back({0, likeliest});
  likeliest[0] = (likeliest[0] + 1) % 1024;
  all[3].scored.push_back({0, likeliest});

  const std::vector<LogLikelihood> results = measure(all, test_world());
  std::size_t at = 0;
  for (const ScoredSequence& sequence : all) {
    const auto rows = logits_of(sequence.ids);
    for (const ScoredRows& scored : sequence.scored) {
      double want = 0;
      bool greedy = true;
      for (std::size_t i = 0; i < scored.targets.size(); ++i) {
        if (scored.targets[i] < 0) continue;
        const auto& row = rows[static_cast<std::size_t>(scored.first_row) + i];
        const float most = *std::ranges::max_element(row);
        double sum = 0;
        for (const float value : row) sum += std::exp(static_cast<double>(value) - most);
        const float own = row[static_cast<std::size_t>(scored.targets[i])];
        want += own - most - std::log(sum);
        greedy = greedy && std::ranges::max_element(row) - row.begin() == scored.targets[i];
      }
      ASSERT_LT(at, results.size());
      EXPECT_NEAR(results[at].sum, want, 1e-5 * std::abs(want) + 1e-4);
      EXPECT_EQ(results[at].greedy, greedy);
      ++at;
    }
  }
  EXPECT_EQ(at, results.size());
}

TEST_F(LogLikelihoodTest, HasTheSameBitsOnAnyNumberOfRanks) {
  std::vector<ScoredSequence> all = sequences();
  const auto alone = make_local_communicator();
  const std::vector<LogLikelihood> want = measure(all, *alone);
  const std::vector<ScoredSequence> own = all;
  if (test_world().rank() != 0) all.clear();
  share_sequences(all, test_world());
  EXPECT_EQ(all, own);
  const std::vector<LogLikelihood> results = measure(all, test_world());
  ASSERT_EQ(results.size(), want.size());
  for (std::size_t i = 0; i < results.size(); ++i) {
    EXPECT_EQ(results[i].sum, want[i].sum);
    EXPECT_EQ(results[i].greedy, want[i].greedy);
  }
}

// A model beside itself with one block's down projection taken away.
TEST_F(LogLikelihoodTest, ModelsAreComparedRowByRow) {
  std::vector<ScoredSequence> all = sequences();
  const BlockSource original = [&](int block) {
    return decoder_->load(model_.checkpoint(), block, *backend_);
  };
  const BlockSource changed = [&](int block) {
    BlockWeights weights = original(block);
    if (block == 3) backend_->zero(weights.linears.back().view());
    return weights;
  };
  NullMonitor monitor;
  ActivationBudget budget(std::size_t{1} << 32, folder_.path());
  const auto compare = [&](const BlockSource& weights, Communicator& world) {
    return compare_models(model_, *decoder_, original, weights, all, Greedy::kNo, *backend_, world,
                          budget, monitor);
  };
  const auto alone = make_local_communicator();
  const Comparison same = compare(original, *alone);
  const std::vector<LogLikelihood> measured = measure(all, *alone);
  std::size_t rows = 0;
  for (const ScoredSequence& sequence : all)
    rows += sequence.ids.size() + 1;  // 2 more, 1 not scored
  ASSERT_EQ(same.rows.size(), rows);
  for (const Divergence& row : same.rows) {
    EXPECT_EQ(row.nats, 0);
    EXPECT_EQ(row.same_top, 1);
  }
  for (std::size_t i = 0; i < measured.size(); ++i)
    EXPECT_EQ(same.log_likelihoods[i].sum, measured[i].sum);

  const Comparison want = compare(changed, *alone);
  const Comparison other = compare(changed, test_world());
  for (std::size_t i = 0; i < rows; ++i) {
    EXPECT_GT(want.rows[i].nats, 0);
    EXPECT_EQ(other.rows[i].nats, want.rows[i].nats);
    EXPECT_EQ(other.rows[i].same_top, want.rows[i].same_top);
  }
  // The second model's figures, and the rows in the order of the sequences: both from the walk without the other.
  const std::vector<LogLikelihood> second = measure_log_likelihoods(
      model_, *decoder_, changed, all, Greedy::kNo, *backend_, *alone, budget, monitor);
  for (std::size_t i = 0; i < second.size(); ++i)
    EXPECT_EQ(want.log_likelihoods[i].sum, second[i].sum);
  std::size_t at = 0;
  for (const ScoredSequence& sequence : all) {
    // The last row is scored by the first two, and by the third.
    const std::size_t last = at + sequence.ids.size();
    EXPECT_EQ(want.rows[at].nats, want.rows[at + 1].nats);
    if (sequence.ids.size() > 2) {
      EXPECT_NEAR(want.rows[at].nats, want.rows[last].nats, 1e-3 * want.rows[at].nats + 1e-5);
    }
    at = last + 1;
  }
}

// A wish to stop that one rank knows of, after some looks.
class StopOfTheFirstRank final : public NullMonitor {
 public:
  explicit StopOfTheFirstRank(int looks) : looks_(looks) {}
  bool stop_requested() override { return test_world().rank() == 0 && looks_-- <= 0; }

 private:
  int looks_;
};

TEST_F(LogLikelihoodTest, AllStopWhereOneIsAskedTo) {
  const std::vector<ScoredSequence> all = sequences();
  const BlockSource weights = [&](int block) {
    return decoder_->load(model_.checkpoint(), block, *backend_);
  };
  ActivationBudget budget(std::size_t{1} << 32, folder_.path());
  // Before the first block, within the blocks, and at the head.
  for (const int looks : {0, 3, static_cast<int>(model_.config().blocks)}) {
    StopOfTheFirstRank monitor(looks);
    const Comparison result = compare_models(model_, *decoder_, {}, weights, all, Greedy::kNo,
                                             *backend_, test_world(), budget, monitor);
    EXPECT_TRUE(result.stopped) << looks;
    EXPECT_TRUE(result.log_likelihoods.empty());
  }
}

TEST_F(LogLikelihoodTest, DivergenceIsThatOfTheDefinition) {
  std::uniform_real_distribution<float> any(-20, 5);
  std::vector<float> a(1003), b(1003);
  for (float& value : a) value = any(random_);
  for (float& value : b) value = any(random_);
  b[7] = a[7] = 9;
  double sum_a = 0, sum_b = 0, want = 0;
  for (const float value : a) sum_a += std::exp(static_cast<double>(value));
  for (const float value : b) sum_b += std::exp(static_cast<double>(value));
  for (std::size_t i = 0; i < a.size(); ++i) {
    const double ln_p = a[i] - std::log(sum_a), ln_q = b[i] - std::log(sum_b);
    want += std::exp(ln_p) * (ln_p - ln_q);
  }
  EXPECT_NEAR(divergence(a, b).nats, want, 1e-5 * want);
  EXPECT_EQ(divergence(a, b).same_top, 1);
  b[8] = 10;
  EXPECT_EQ(divergence(a, b).same_top, 0);
  b[9] = NAN;
  EXPECT_TRUE(std::isnan(divergence(a, b).nats));
}

TEST_F(LogLikelihoodTest, BatchesAreOfAbout2048TokensAndLikeLengths) {
  std::vector<ScoredSequence> all;
  for (const std::size_t length : {10, 1000, 3000, 1000, 20, 1100})
    all.push_back({std::vector<std::int32_t>(length), {}});
  std::vector<std::vector<std::size_t>> cut;
  for (const EvaluationBatch& batch : cut_batches(all)) cut.push_back(batch.sequences);
  EXPECT_EQ(cut, (std::vector<std::vector<std::size_t>>{{2}, {5}, {1, 3}, {4, 0}}));
}

TEST_F(LogLikelihoodTest, RowsThatAreNotThereAreRefused) {
  const std::vector<ScoredSequence> beyond = {{{1, 2}, {{1, {3, 4}}}}};
  EXPECT_THROW(measure(beyond, test_world()), Error);
  const std::vector<ScoredSequence> empty = {{{}, {}}};
  EXPECT_THROW(measure(empty, test_world()), Error);
}

// The figures of the model's README, from an independent program.
TEST_F(LogLikelihoodTest, AccuraciesOfTheBundledModelAreTheKnownOnes) {
  if (test_world().size() != 2) GTEST_SKIP() << "once is enough, on two ranks";
  const auto tokenizer = load_tokenizer(kModel);
  const RequestEncoder encoder(*tokenizer, model_.config(), Protocol::kLmEval);
  const auto accuracy = [&](const std::string& file, const std::string& task) {
    const TaskTemplate made_by = read_task_template(task);
    const auto documents = read_task(made_by, kModel / "tasks" / (file + ".jsonl"), 0);
    const TaskSequences encoded = encoder.encode(documents, [] {});
    const TaskResult result = score_task(scoring_of(made_by, Protocol::kLmEval), documents,
                                         encoded.results, measure(encoded.sequences, test_world()));
    EXPECT_EQ(result.figures["documents"], 500);
    return result.figures["acc"].get<double>();
  };
  EXPECT_DOUBLE_EQ(accuracy("arithmetic", "choices"), 0.994);
  EXPECT_DOUBLE_EQ(accuracy("yesno", "choices"), 1);
  EXPECT_DOUBLE_EQ(accuracy("lastword", "greedy"), 0.078);
}

}  // namespace
}  // namespace roundhouse
