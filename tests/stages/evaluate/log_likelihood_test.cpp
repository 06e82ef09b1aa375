#include "stages/evaluate/log_likelihood.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <random>
#include <set>

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
  const BlockSource original_ = [this](int block) {
    return decoder_->load(model_.checkpoint(), block, *backend_);
  };
  // One block's down projection taken away.
  const BlockSource changed_ = [this](int block) {
    BlockWeights weights = original_(block);
    if (block == 3) backend_->zero(weights.linears.back().view());
    return weights;
  };
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
        const float own = row[scored.targets[i]];
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

// A wish to stop that one rank knows of, after some looks.
class StopOfTheFirstRank final : public NullMonitor {
 public:
  explicit StopOfTheFirstRank(int looks) : looks_(looks) {}
  bool stop_requested() override { return test_world().rank() == 0 && looks_-- <= 0; }

 private:
  int looks_;
};

// Many works of a batch each, some of which are compared with another model.
class PipelineTest : public LogLikelihoodTest {
 protected:
  PipelineTest() {
    for (int length : {40, 9, 30, 21, 5, 64, 12, 50, 33}) {
      ScoredSequence sequence{random_ids(static_cast<std::size_t>(length)), {}};
      sequence.scored.push_back({1, random_ids(static_cast<std::size_t>(length) - 1)});
      sequences_.push_back({sequence, {random_ids(3), {{2, {17}}}}});
    }
    for (std::size_t w = 0; w < sequences_.size(); ++w) {
      works_.push_back({.sequences = sequences_[w],
                        .greedy = w % 2 == 0 ? Greedy::kYes : Greedy::kNo,
                        .compared = w % 3 == 1});
    }
  }

  struct Outcome {
    std::vector<Comparison> results;
    int takes = 0;
    std::int64_t loaded = 0;  // blocks, by all ranks
    bool stopped = false;
  };
  Outcome evaluate(std::span<const EvaluationWork> works, Communicator& world, WalkShape shape,
                   std::size_t budget_bytes, Monitor& monitor) {
    ActivationBudget budget(budget_bytes, folder_.path());
    Outcome outcome;
    const auto facts = evaluate_model(
        {model_, *decoder_, original_, changed_, *backend_, world, budget, monitor, shape}, works,
        [&](std::size_t first, std::vector<Comparison> results) {
          EXPECT_EQ(first, outcome.results.size()) << "works come in order, each once";
          for (Comparison& result : results) outcome.results.push_back(std::move(result));
          ++outcome.takes;
        });
    outcome.stopped = !facts;
    if (facts) outcome.loaded = world.all_reduce_sum(facts->blocks_loaded);
    return outcome;
  }
  Outcome evaluate(std::span<const EvaluationWork> works, Communicator& world, WalkShape shape,
                   std::size_t budget_bytes) {
    NullMonitor monitor;
    Outcome outcome = evaluate(works, world, shape, budget_bytes, monitor);
    EXPECT_FALSE(outcome.stopped);
    EXPECT_EQ(outcome.results.size(), works.size());
    return outcome;
  }

  static void expect_same(const Comparison& result, const Comparison& want) {
    ASSERT_EQ(result.log_likelihoods.size(), want.log_likelihoods.size());
    ASSERT_EQ(result.rows.size(), want.rows.size());
    for (std::size_t i = 0; i < want.rows.size(); ++i) {
      EXPECT_EQ(result.rows[i].nats, want.rows[i].nats);
      EXPECT_EQ(result.rows[i].same_top, want.rows[i].same_top);
    }
    for (std::size_t i = 0; i < want.log_likelihoods.size(); ++i) {
      EXPECT_EQ(result.log_likelihoods[i].sum, want.log_likelihoods[i].sum);
      EXPECT_EQ(result.log_likelihoods[i].greedy, want.log_likelihoods[i].greedy);
    }
  }

  static constexpr std::size_t kPlenty = std::size_t{1} << 30;
  std::vector<std::vector<ScoredSequence>> sequences_;
  std::vector<EvaluationWork> works_;
};

TEST_F(PipelineTest, HasTheBitsOfEachWorkAloneWhateverItsShapeAndMemory) {
  const auto alone = make_local_communicator();
  std::vector<Comparison> want;
  for (const EvaluationWork& work : works_)
    want.push_back(evaluate({&work, 1}, *alone, {}, kPlenty).results[0]);
  EXPECT_TRUE(want[0].rows.empty());
  ASSERT_FALSE(want[1].rows.empty());
  EXPECT_GT(want[1].rows[0].nats, 0);

  const int ranks = test_world().size();
  for (const int rings : std::set{1, std::min(2, ranks), ranks}) {
    for (const auto& [blocks_at_once, memory] : std::vector<std::pair<int, std::size_t>>{
             {1, kPlenty}, {1, 4096}, {2, 4096}, {6, kPlenty}}) {
      SCOPED_TRACE(testing::Message()
                   << rings << " rings, " << blocks_at_once << " blocks, " << memory << " bytes");
      const Outcome outcome = evaluate(works_, test_world(), {rings, blocks_at_once}, memory);
      for (std::size_t w = 0; w < want.size(); ++w) expect_same(outcome.results[w], want[w]);
    }
  }
}

TEST_F(PipelineTest, BlocksAreLoadedOnceAWalkByOneRankOfARing) {
  const int ranks = test_world().size(), blocks = 6;
  EXPECT_EQ(evaluate(works_, test_world(), {1, 1}, kPlenty).loaded, 2 * blocks) << "both models";
  for (EvaluationWork& work : works_) work.compared = false;
  const Outcome one_ring = evaluate(works_, test_world(), {1, 1}, kPlenty);
  EXPECT_EQ(one_ring.loaded, blocks);
  EXPECT_EQ(one_ring.takes, 1);
  EXPECT_EQ(evaluate(works_, test_world(), {ranks, 1}, kPlenty).loaded, blocks * ranks);
  // Where activations do not fit, once a portion, of two batches a rank at least. Of six ranks each would have one block.
  const int portions = (static_cast<int>(works_.size()) + 2 * ranks - 1) / (2 * ranks);
  const Outcome in_portions = evaluate(works_, test_world(), {1, 1}, 4096);
  EXPECT_EQ(in_portions.loaded, portions * blocks);
  EXPECT_EQ(in_portions.takes, portions);
  // Where all weights fit they stay, and each work is told of when it is done.
  const Outcome resident = evaluate(works_, test_world(), {1, 6}, kPlenty);
  EXPECT_EQ(resident.loaded, blocks);
  EXPECT_EQ(resident.takes, static_cast<int>(works_.size()));
}

// Before the first block, within the blocks, and at the head; in a ring in which others still send, and beside other rings.
TEST_F(PipelineTest, AllStopWhereOneIsAskedTo) {
  const int ranks = test_world().size(), batches = static_cast<int>(works_.size());
  for (const int rings : {1, ranks}) {
    // Three batches go through both models, and not all in the first of several rings.
    const int items = rings == 1 ? batches + 3 : batches / rings;
    const int last = items * stages_of_walk(6, ranks / rings, 1).blocks_of_rank(0);
    for (const int looks : {0, 1, last / 2, last}) {
      StopOfTheFirstRank monitor(looks);
      const Outcome outcome = evaluate(works_, test_world(), {rings, 1}, kPlenty, monitor);
      EXPECT_TRUE(outcome.stopped) << looks << " looks of a rank of " << rings << " rings";
      EXPECT_TRUE(outcome.results.empty());
    }
  }
}

TEST_F(PipelineTest, StagesAreDealtRoundTheRing) {
  const auto ends = [](const WalkStages& stages) {
    std::vector<int> all;
    for (int stage = 0; stage < stages.stages; ++stage) all.push_back(stages.blocks_of(stage).end);
    return all;
  };
  EXPECT_EQ(ends(stages_of_walk(6, 4, 1)), (std::vector<int>{1, 2, 3, 4, 5, 6}));
  EXPECT_EQ(stages_of_walk(6, 4, 1).blocks_of_rank(1), 2);
  EXPECT_EQ(stages_of_walk(6, 4, 1).blocks_of_rank(2), 1);
  EXPECT_EQ(ends(stages_of_walk(32, 3, 4)), (std::vector<int>{4, 8, 12, 16, 20, 23, 26, 29, 32}));
  EXPECT_EQ(ends(stages_of_walk(80, 8, 64)), (std::vector<int>{10, 20, 30, 40, 50, 60, 70, 80}));
  EXPECT_TRUE(stages_of_walk(80, 8, 10).weights_stay());
  EXPECT_FALSE(stages_of_walk(80, 8, 9).weights_stay());
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
  NullMonitor monitor;
  ActivationBudget budget(std::size_t{1} << 32, folder_.path());
  const auto compare = [&](const BlockSource& weights, Communicator& world) {
    return compare_models(model_, *decoder_, original_, weights, all, Greedy::kNo, *backend_, world,
                          budget, monitor);
  };
  const auto alone = make_local_communicator();
  const Comparison same = compare(original_, *alone);
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

  const Comparison want = compare(changed_, *alone);
  const Comparison other = compare(changed_, test_world());
  for (std::size_t i = 0; i < rows; ++i) {
    EXPECT_GT(want.rows[i].nats, 0);
    EXPECT_EQ(other.rows[i].nats, want.rows[i].nats);
    EXPECT_EQ(other.rows[i].same_top, want.rows[i].same_top);
  }
  // The second model's figures, and the rows in the order of the sequences: both from the walk without the other.
  const std::vector<LogLikelihood> second = measure_log_likelihoods(
      model_, *decoder_, changed_, all, Greedy::kNo, *backend_, *alone, budget, monitor);
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
