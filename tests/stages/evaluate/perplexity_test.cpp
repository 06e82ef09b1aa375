#include "stages/evaluate/perplexity.h"

#include <gtest/gtest.h>

#include <cstdlib>

#include "base/error.h"
#include "base/file.h"
#include "comm/launcher.h"
#include "model/tokenizer/tokenizer.h"
#include "tests/base/temporary_folder.h"
#include "tests/comm/mpi_world.h"
#include "tests/source_folder.h"

namespace roundhouse {
namespace {

const std::filesystem::path kModel = source_folder() / "tests/data/tiny-world";

TEST(PerplexityTest, CutsWindowsAndDropsTheRest) {
  const std::vector<std::int32_t> tokens{0, 1, 2, 3, 4, 5, 6};
  EXPECT_EQ(cut_windows(tokens, 3, 0, "t").count(), 2);
  EXPECT_EQ(cut_windows(tokens, 3, 1, "t").count(), 1);
  EXPECT_EQ(cut_windows(tokens, 3, 0, "t").ids, (std::vector<std::int32_t>{0, 1, 2, 3, 4, 5}));
  EXPECT_THROW(cut_windows(tokens, 8, 0, "t"), InputError);
}

TEST(PerplexityTest, DivergencesAreSummedUp) {
  std::vector<Divergence> rows;
  for (int i = 1; i <= 200; ++i) rows.push_back({static_cast<double>(i), i > 50 ? 1 : 0});
  const DivergenceFigures figures = figures_of(rows);
  EXPECT_DOUBLE_EQ(figures.mean, 100.5);
  EXPECT_DOUBLE_EQ(figures.percentile_99, 198);
  EXPECT_DOUBLE_EQ(figures.largest, 200);
  EXPECT_DOUBLE_EQ(figures.same_top, 0.75);
  EXPECT_EQ(figures.rows, 200);
  EXPECT_EQ(figures_of(std::span(rows).first(1)).percentile_99, 1);
  rows[3].nats = NAN;
  EXPECT_TRUE(std::isnan(figures_of(rows).largest));
}

TEST(PerplexityTest, JoinsTheRowsOfADataSet) {
  EXPECT_EQ(join_rows(" \n = A = \n \n text \n"), "\n\n = A = \n\n\n\n\n text \n");
  EXPECT_EQ(join_rows("a\nb"), "a\n\n\nb");
  EXPECT_EQ(join_rows(""), "");
}

// The widely reported number of tokens of WikiText-2's test text under LLaMA's tokenizer: 341,469, which is 166 windows.
TEST(PerplexityTest, WikiTextHasItsKnownTokens) {
  const char* given = std::getenv("ROUNDHOUSE_DATA");
  const std::filesystem::path data = given ? given : source_folder().parent_path() / "shared/data";
  if (!std::filesystem::exists(data / "wikitext2"))
    GTEST_SKIP() << "no " << data << " (set ROUNDHOUSE_DATA)";
  const auto tokens =
      load_tokenizer(data / "tokenizers/llama")
          ->encode_document(join_rows(read_text_file(data / "wikitext2/wiki.test.raw")));
  EXPECT_EQ(tokens.size(), 341469u);
}

class BundledModel {
 public:
  Perplexity measure(Communicator& world, std::int64_t limit) {
    const Windows windows =
        cut_windows(load_tokenizer(kModel)->encode_document(read_text_file(kModel / "test.txt")),
                    512, limit, "test");
    NullMonitor monitor;
    ActivationBudget budget(std::size_t{1} << 32, folder_.path());
    const std::vector<ScoredSequence> sequences = sequences_of(windows);
    return perplexity_of(
        measure_log_likelihoods(
            model_, *decoder_,
            [&](int block) { return decoder_->load(model_.checkpoint(), block, *backend_); },
            sequences, Greedy::kNo, *backend_, world, budget, monitor),
        windows.length);
  }

 private:
  TemporaryFolder folder_;
  CausalLM model_{kModel};
  std::unique_ptr<Backend> backend_ = make_backend("cpu", {.threads = 1});
  std::unique_ptr<DecoderBlock> decoder_ = make_decoder_block(model_.config(), 512, *backend_);
};

TEST(PerplexityTest, IsTheSameOnAnyNumberOfRanks) {
  BundledModel model;
  const auto alone = make_local_communicator();
  // 11 windows are 3 micro-batches: with 4 ranks one has none.
  const Perplexity together = model.measure(test_world(), 11);
  EXPECT_EQ(together.windows, 11);
  EXPECT_EQ(together.perplexity, model.measure(*alone, 11).perplexity);
}

}  // namespace
}  // namespace roundhouse
