#include "pipeline/watch/time_left.h"

#include <gtest/gtest.h>

#include "kernels/backend.h"
#include "model/synthetic.h"
#include "stages/quantize/methods.h"

namespace roundhouse {
namespace {

nlohmann::json plan() {
  return {{"block rtn-w4", {{"cost", 1e9}, {"left", 4}}},
          {"block gptq-w4", {{"cost", 20e9}, {"left", 4}}},
          {"export dense", {{"cost", 4e9}, {"left", 2}}},
          {"perplexity test", {{"cost", 8e9}, {"left", 3}}}};
}

nlohmann::json block(const char* recipe, double seconds, int ranks = 1) {
  return {{"event", "block"}, {"recipe", recipe}, {"seconds", seconds}, {"ranks", ranks}};
}

TEST(TimeLeftTest, IsNotKnownBeforeAPieceIsFinished) {
  TimeLeft left(plan());
  EXPECT_FALSE(left.seconds(10));
  left.finished({{"event", "calibration"}, {"seconds", 3}});
  EXPECT_FALSE(left.seconds(10));
}

// By the mean of the units so far 0.1 s times 4 would be left: 0.4 s.
TEST(TimeLeftTest, DearerRecipesExportsAndEvaluationsCountBeforeTheyWereSeen) {
  TimeLeft left(plan());
  for (int i = 0; i < 4; ++i) left.finished(block("rtn-w4", 0.1));
  EXPECT_NEAR(left.seconds(0.4).value(), 0.1 * (4 * 20 + 2 * 4 + 3 * 8), 1e-9);
}

TEST(TimeLeftTest, WhatAKindTookItselfCounts) {
  TimeLeft left(plan());
  for (int i = 0; i < 4; ++i) left.finished(block("rtn-w4", 0.1));
  for (int i = 0; i < 4; ++i) left.finished(block("gptq-w4", 1));
  left.finished({{"event", "export"}, {"format", "dense"}, {"seconds", 6}, {"ranks", 1}});
  left.finished({{"event", "perplexity"}, {"name", "test"}, {"seconds", 2}, {"ranks", 1}});
  EXPECT_NEAR(left.seconds(12.4).value(), 6 + 2 * 2, 1e-9) << "no block is left";
}

TEST(TimeLeftTest, TeamsWorkSideBySide) {
  TimeLeft left(nlohmann::json{{"block a", {{"cost", 1}, {"left", 8}}}});
  // Two teams of three ranks made two blocks each in 2 s.
  for (int i = 0; i < 4; ++i) left.finished(block("a", 1, 3));
  EXPECT_NEAR(left.seconds(2).value(), 2, 1e-9);
}

// From the first block on that is run forward, long before any block of a recipe is made.
TEST(TimeLeftTest, AWalkThroughGradientsIsKnownFromItsFirstBlockOn) {
  const auto backend = make_backend("cpu", {.threads = 1});
  const auto decoder = make_decoder_block(shape_like("llama-2-7b"), 1, *backend);
  const auto method = make_method(parse_recipe({{"method", "squeezellm"}, {"bits", 3}}));
  const double forward = gradient_forward_cost(*decoder, 100, 512);
  const double backward = gradient_cost(*decoder, 100, 512);
  const double block = block_cost(*method, *decoder, {}, false);
  constexpr double kRate = 1e12;  // operations a second
  TimeLeft left(nlohmann::json{{"gradients 100x512 forward", {{"cost", forward}, {"left", 32}}},
                               {"gradients 100x512", {{"cost", backward}, {"left", 32}}},
                               {"block squeezellm-w3", {{"cost", block}, {"left", 32}}}});
  double elapsed = 0;
  const auto expect_rest = [&](int forwards, int backwards, int blocks) {
    const double rest = (forwards * forward + backwards * backward + blocks * block) / kRate;
    EXPECT_NEAR(left.seconds(elapsed).value(), rest, 1e-6 * rest);
  };
  const auto piece = [&](nlohmann::json event, double cost) {
    event["seconds"] = cost / kRate;
    event["ranks"] = 1;
    left.finished(event);
    elapsed += cost / kRate;
  };
  const nlohmann::json size = {{"samples", 100}, {"length", 512}};
  const auto of_walk = [&](const char* event) {
    nlohmann::json all = size;
    all["event"] = event;
    return all;
  };
  piece(of_walk("gradients_forward"), forward);
  expect_rest(31, 32, 32);
  for (int i = 1; i < 32; ++i) piece(of_walk("gradients_forward"), forward);
  expect_rest(0, 32, 32);
  piece(of_walk("gradients_block"), backward);
  expect_rest(0, 31, 32);
  piece({{"event", "block"}, {"recipe", "squeezellm-w3"}}, block);
  expect_rest(0, 31, 31);
}

TEST(TimeLeftTest, MethodsCostWhatTheyCompute) {
  const auto backend = make_backend("cpu", {.threads = 1});
  const auto decoder = make_decoder_block(shape_like("llama-2-7b"), 1, *backend);
  SampleOptions samples;
  samples.samples = 128;
  samples.sequence_length = 2048;
  const auto cost = [&](const nlohmann::json& recipe) {
    return block_cost(*make_method(parse_recipe(recipe)), *decoder, samples, false);
  };
  const double rtn = cost({{"method", "rtn"}});
  const double gptq = cost({{"method", "gptq"}});
  const double signround = cost({{"method", "signround"}, {"iterations", 200}});
  EXPECT_GT(rtn, 0);
  EXPECT_GT(gptq, 5 * rtn);
  EXPECT_GT(cost({{"method", "squeezellm"}}), 50 * rtn) << "sorting, and k-means in each row";
  EXPECT_GT(signround, 5 * gptq);
}

}  // namespace
}  // namespace roundhouse
