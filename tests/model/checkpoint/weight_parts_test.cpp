// Weights in pieces: hashed, dealt to ranks, and loaded by parts with the bits of the whole.
#include "model/checkpoint/weight_parts.h"

#include <limits>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/hash.h"
#include "model/checkpoint/load_weight.h"
#include "tests/model/model_files.h"

namespace roundhouse {
namespace {

using testing::HasSubstr;

// Of these many values, none like its neighbours.
HostTensor tensor_of(DType type, Shape shape) {
  HostTensor tensor(type, std::move(shape));
  std::vector<float> values(static_cast<std::size_t>(tensor.count()));
  for (std::size_t i = 0; i < values.size(); ++i)
    values[i] = static_cast<float>(i * 7919 % 10007) / 5000.0f - 1.0f;
  convert(DType::kF32, values.data(), type, tensor.bytes().data(), values.size());
  return tensor;
}

TEST(TensorPiecesTest, ASmallTensorHasTheHashOfItsBytes) {
  const HostTensor tensor = tensor_of(DType::kF16, {3, 5});
  const std::string bytes(reinterpret_cast<const char*>(tensor.bytes().data()), 30);
  EXPECT_EQ(content_hash(tensor.view()), xxh3_hex("F16 3 5\n" + bytes)) << "as records have it";
}

TEST(TensorPiecesTest, ALargeOneHasThatOfItsPieces) {
  HostTensor tensor = tensor_of(DType::kF16, {2, kPieceValues + 3});
  const auto pieces = [&] {
    std::vector<std::string> hashes;
    for (const std::int64_t piece : {0, 1, 2})
      hashes.push_back(hash_of_piece(tensor.view(), piece));
    return hashes;
  };
  EXPECT_EQ(pieces_of(tensor.count()).count(), 3);
  const std::vector<std::string> before = pieces();
  const std::string whole = content_hash(tensor.view());
  EXPECT_EQ(whole, hash_of_pieces(before));
  tensor.bytes().back() ^= std::byte{1};
  const std::vector<std::string> after = pieces();
  EXPECT_EQ(before[0], after[0]);
  EXPECT_EQ(before[1], after[1]);
  EXPECT_NE(before[2], after[2]);
  EXPECT_NE(whole, content_hash(tensor.view()));
}

TEST(WeightPartsTest, EveryPieceIsInOnePart) {
  const std::vector<LinearSpec> linears = {
      {"a", 513, 2049}, {"b", 1, 1}, {"c", kPieceValues, 1}, {"d", 7, 3 * kPieceValues}};
  ASSERT_EQ(pieces_of_block(linears), 3 + 1 + 1 + 21);
  for (int parts = 1; parts <= 40; ++parts) {
    std::vector<std::int64_t> next(linears.size());  // piece that comes next, by linear
    std::int64_t total = 0, largest = 0;
    for (int part = 0; part < parts; ++part) {
      std::int64_t count = 0;
      for (const auto& [linear, pieces] : pieces_of_part(linears, {part, parts})) {
        EXPECT_EQ(pieces.begin, next[linear]);
        next[linear] = pieces.end;
        count += pieces.count();
      }
      EXPECT_LE(count, (26 + parts - 1) / parts);
      EXPECT_GE(count, 26 / parts);
      largest = std::max(largest, count);
      total += count;
    }
    EXPECT_EQ(total, 26);
    EXPECT_LE(largest_part(linears, parts), largest * kPieceValues);
    EXPECT_GT(largest_part(linears, parts), (largest - 2) * kPieceValues);
  }
}

// Rows that are no multiple of anything, in linears of one piece and of several.
class LoadPartTest : public testing::Test {
 protected:
  static constexpr int kParts = 3;
  LoadPartTest() {
    nlohmann::json config = small_config();
    config.update({{"hidden_size", 512}, {"intermediate_size", 1027}, {"num_hidden_layers", 1}});
    tensors_ = formula_tensors(config, DType::kF16);
    write_model(directory_.path(), config, tensors_);
    checkpoint_ = std::make_unique<Checkpoint>(directory_.path());
    decoder_ = make_decoder_block(read_model_config(directory_.path()), 8, *backend_);
    weights_.linears.clear();
    for (const LinearSpec& linear : decoder_->linears())
      weights_.linears.emplace_back(*backend_, backend_->activation_type(), linear.rows,
                                    linear.cols);
  }
  std::vector<std::string> load(int part) {
    return load_part(*checkpoint_, *decoder_, {part, kParts}, weights_, *backend_);
  }

  TemporaryFolder directory_;
  Tensors tensors_;
  std::unique_ptr<Backend> backend_ = make_backend("cpu", {.threads = 2});
  std::unique_ptr<Checkpoint> checkpoint_;
  std::unique_ptr<DecoderBlock> decoder_;
  BlockWeights weights_;
};

TEST_F(LoadPartTest, AllPartsAreTheWeights) {
  std::vector<std::string> hashes;
  for (int part = 0; part < kParts; ++part) {
    for (std::string& hash : load(part)) hashes.push_back(std::move(hash));
  }
  const Checkpoint other(directory_.path());
  BlockWeights want = decoder_->load(other, 0, *backend_);
  for (std::size_t i = 0; i < want.linears.size(); ++i) {
    EXPECT_TRUE(std::ranges::equal(bytes_of(weights_.linears[i]), bytes_of(want.linears[i])))
        << decoder_->linears()[i].name;
  }
  EXPECT_TRUE(checkpoint_->contents().all().empty()) << "no rank knows all pieces yet";
  note_parts(*checkpoint_, *decoder_, 0, hashes);
  for (const auto& [name, hash] : checkpoint_->contents().all())
    EXPECT_EQ(hash, other.contents().of(name)) << name;
  EXPECT_EQ(checkpoint_->contents().all().size(), want.linears.size());
  hashes.back() = "another";
  EXPECT_THAT(input_error_of([&] { note_parts(*checkpoint_, *decoder_, 0, hashes); }),
              HasSubstr("down_proj.weight"));
}

TEST_F(LoadPartTest, APartHasNothingToDoWithTheValuesOfAnother) {
  HostTensor& down = tensors_.at("model.layers.0.mlp.down_proj.weight");
  down.as<std::uint16_t>().back() = 0x7e00;  // NaN
  write_safetensors(directory_ / "model.safetensors", tensors_);
  checkpoint_ = std::make_unique<Checkpoint>(directory_.path());
  for (const int part : {0, 1}) EXPECT_NO_THROW((void)load(part));
  EXPECT_THAT(input_error_of([&] { (void)load(2); }), HasSubstr("down_proj.weight\": holds NaN"));
}

}  // namespace
}  // namespace roundhouse
