// Records that an earlier version of this program has written into a run are still read.
#include <gtest/gtest.h>

#include "base/file.h"
#include "base/hash.h"
#include "model/model_config.h"
#include "pipeline/run/hdf5_store.h"
#include "stages/store/block_record.h"
#include "tests/base/temporary_folder.h"
#include "tests/source_folder.h"

namespace roundhouse {
namespace {

// Of a LLaMA of 32 channels: 3 bits in groups of 16 columns, reordered.
constexpr const char* kKey = "recipes/gptq-w3g16-act-order-dynamic/block-0000";
constexpr const char* kConfig = R"({"model_type": "llama", "hidden_size": 32,
    "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
    "num_key_value_heads": 2, "vocab_size": 1024, "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5, "hidden_act": "silu", "tie_word_embeddings": true})";
// SHA-256 of the weights of all linears in float32, as that program exported them as `dense`.
constexpr const char* kWeights = "7661ea045492b64d6f447135de15c6260fb06a3bada7035c3e8d69b8812607ab";

TEST(EarlierRecordTest, Version1HoldsTheSameWeights) {
  TemporaryFolder folder;
  write_text_atomically(folder.path() / "config.json", kConfig);
  const auto backend = make_backend("cpu", {});
  const auto decoder = make_decoder_block(read_model_config(folder.path()), 16, *backend);
  Hdf5Store store(source_folder() / "tests/data/records");
  const std::optional<Record> record = store.load(kKey);
  ASSERT_TRUE(record.has_value()) << store.check(kKey);
  EXPECT_EQ(record->attributes.at("version"), 1);

  const QuantizedBlock block = block_from_record(*record, *decoder);
  ASSERT_EQ(block.linears.size(), 7u);
  EXPECT_GT(block.linears[0].group_of_column.count(), 0);
  std::string weights;
  for (const QuantizedLinear& linear : block.linears) {
    DequantizedRows rows(linear);
    for (std::int64_t row = 0; row < linear.rows; ++row) {
      const auto bytes = std::as_bytes(rows.values(row));
      weights.append(reinterpret_cast<const char*>(bytes.data()), bytes.size());
    }
  }
  write_text_atomically(folder.path() / "weights", weights);
  EXPECT_EQ(sha256_hex_of_file(folder.path() / "weights"), kWeights);
}

}  // namespace
}  // namespace roundhouse
