// Perplexity by GPTQ's protocol (gptq: llama_eval): the whole text is tokenized once, with one BOS in front, and cut into
// windows of `window` tokens without overlap; the remainder is dropped. In each window tokens 1..window-1 are predicted from
// those before them (positions restart, no further BOS). Perplexity is exp of the mean over windows of the mean loss.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "stages/evaluate/log_likelihood.h"

namespace roundhouse {

struct Windows {
  std::vector<std::int32_t> ids;  // count() * length
  std::int64_t length = 0;
  std::int64_t count() const { return static_cast<std::int64_t>(ids.size()) / length; }
};

// At most `limit` windows (0: all). Throws InputError naming `name` if the tokens do not fill one window.
Windows cut_windows(const std::vector<std::int32_t>& tokens, std::int64_t length,
                    std::int64_t limit, const std::string& name);

// The text of which the published WikiText-2 perplexities speak: the data set has one row a line (with its line feed, or empty
// if the line is blank), and the rows are joined by two line feeds.
std::string join_rows(std::string_view text);

struct Perplexity {
  double perplexity = 0;
  std::int64_t windows = 0;
  std::int64_t length = 0;
};

// A sequence for each window, of which every token but the first is scored.
std::vector<ScoredSequence> sequences_of(const Windows& windows);

// How far a model is from another one over the rows of a text: Kullback-Leibler divergences, in nats.
struct DivergenceFigures {
  double mean = 0;
  double percentile_99 = 0;  // the least that 99 % of the rows do not exceed
  double largest = 0;
  double same_top = 0;  // share of the rows at which both have the same likeliest token
  std::int64_t rows = 0;
};
DivergenceFigures figures_of(std::span<const Divergence> rows);

// Of the log-likelihoods of the windows, in their order. Not a number if the model's output is not finite.
Perplexity perplexity_of(std::span<const LogLikelihood> windows, std::int64_t length);

}  // namespace roundhouse
