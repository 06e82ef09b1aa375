// Calibration samples: token windows drawn from text by seed, and their cut into shards and micro-batches, which depends
// on the problem alone, never on the number of ranks.
#pragma once

#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include "comm/tree_sum.h"
#include "stages/flow/monitor.h"
#include "stages/store/run_store.h"

namespace roundhouse {

class ThreadPool;
class Tokenizer;

// Sequences that go through a block together: about 2048 tokens, a shape that the matrix products like.
std::int64_t micro_batch_sequences(std::int64_t length);

enum class Drawing {
  kWindows,  // GPTQ's: a window out of each document; shorter documents are skipped
  kPacked,   // AWQ's: whole documents one after another, cut into windows; longer ones are skipped
  kConcatenated  // all documents one after another, cut into windows, some of which are taken
};

const std::vector<std::string>& names_of_drawings();  // in this order

struct SampleOptions {
  std::filesystem::path text;     // see TextFile
  std::string text_key = "text";  // of JSON lines; only another one may hold conversations
  int samples = 128;
  int sequence_length = 2048;
  std::uint64_t seed = 42;
  int shards = 16;
  Drawing drawing = Drawing::kWindows;
  std::string keys =
      "calibration";  // for messages: under which keys samples and sequence_length stand
};

// All samples of a run: samples x sequence_length token ids. Small (512 x 2048 x 4 bytes = 4 MB): every rank has all.
class Samples {
 public:
  Samples(std::int64_t count, std::int64_t length, int shards, std::vector<std::int32_t> ids);

  std::int64_t count() const { return count_; }
  std::int64_t length() const { return length_; }
  int shards() const { return shards_; }
  std::span<const std::int32_t> ids(std::int64_t first,
                                    std::int64_t n) const;  // n samples, one after another

  // Samples [begin, end) of a shard; sizes differ by at most one. Never empty: shards <= count.
  PartRange samples_of_shard(int shard) const;
  // Samples a micro-batch holds; the last one of a shard may have fewer.
  std::int64_t micro_batch() const { return micro_batch_sequences(length_); }

 private:
  std::int64_t count_, length_;
  int shards_;
  std::vector<std::int32_t> ids_;
};

struct DrawnSamples {
  Samples samples;
  nlohmann::json facts;  // what they were drawn from, for the journal
};

// Draws token windows and says what it took for what and from how many documents. The choice depends on the text, the tokenizer
// and the options alone.
// kWindows: documents come in a random order; a window starts at a uniformly random token of each, as GPTQ's data loader does
// it, and none is used twice before all were used once. kPacked: as llm-awq's (awq/utils/calib_data.py), in the same order,
// documents are stripped of white space at their ends, each begins with the begin-of-text token, and none is used twice.
// kConcatenated: in the file's order; windows lie side by side from a random token on, and a random choice of them is taken.
// Conversations are written down by the template in `model`, the folder of the model.
// Throws InputError naming the file: see TextFile; fewer tokens than are asked for in the documents that the drawing takes, with
// what there is and what to change.
DrawnSamples draw_samples(const SampleOptions& options, const std::filesystem::path& model,
                          const Tokenizer& tokenizer, ThreadPool& threads, Monitor& monitor);

Record to_record(const Samples& samples);
Samples samples_from_record(const Record& record);  // throws Error if it does not make sense

}  // namespace roundhouse
