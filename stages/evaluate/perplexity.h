// Perplexity by GPTQ's protocol (gptq: llama_eval): the whole text is tokenized once, with one BOS in front, and cut into
// windows of `window` tokens without overlap; the remainder is dropped. In each window tokens 1..window-1 are predicted from
// those before them (positions restart, no further BOS). Perplexity is exp of the mean over windows of the mean loss.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "comm/communicator.h"
#include "model/block/decoder_block.h"
#include "model/causal_lm.h"
#include "stages/flow/activations.h"
#include "stages/flow/monitor.h"

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

// Weights of block b, loaded when they are needed: original or dequantized.
using BlockSource = std::function<BlockWeights(int block)>;

struct Perplexity {
  double perplexity = 0;
  std::int64_t windows = 0;
  std::int64_t length = 0;
};

// Collective over `world`: ranks share the windows; each runs its own through all blocks, one block in memory at a time. The
// result has the same bits on any number of ranks. Not a number if the model's output is not finite.
Perplexity measure_perplexity(const CausalLM& model, const DecoderBlock& shape,
                              const BlockSource& weights, const Windows& windows, Backend& backend,
                              Communicator& world, ActivationBudget& budget, Monitor& monitor);

}  // namespace roundhouse
