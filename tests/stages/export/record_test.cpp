// A block as a record of the run store, the keys of a run, and the store of the tests.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>
#include <limits>

#include "base/error.h"
#include "kernels/host_threads.h"
#include "stages/store/block_record.h"
#include "tests/stages/export_world.h"
#include "tests/support/memory_store.h"

namespace roundhouse {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

struct TwoLinears final : DecoderBlock {
  TwoLinears() {
    prefix_ = "model.layers.";
    linears_ = {{"self_attn.q_proj", 32, 64}, {"mlp.down_proj", 5, 43}};
    norms_ = {{"input_layernorm.weight", 7}, {"input_layernorm.bias", 7}};
    hidden_size_ = 7;
  }
  BlockWeights load(const Checkpoint&, int, Backend&, LoadLinears) const override { return {}; }
  Tensor input_from_residual(int, const BlockWeights&, const Tensor&, Backend&) const override {
    return {};
  }
  void apply(int, const BlockWeights&, BlockState&, Backend&) const override {}
  std::vector<Tensor> forward_half(Half, const BlockWeights&, Tensor&, std::int64_t,
                                   Backend&) const override {
    return {};
  }
  void backward_half(Half, const BlockWeights&, SavedActivations::OfHalf&, std::int64_t, Tensor&,
                     const TakeGradient&, InputGradient, Backend&) const override {}
};

QuantizedBlock example(int bits) {
  QuantizedBlock block;
  block.block = 3;
  block.record = {{"samples", 128}};
  block.linears.push_back(random_linear("self_attn.q_proj", 32, 64, bits, 16, Grid::kSymFull, 1));
  // Sides that divide nothing: rows end inside a word, and the last group is shorter.
  block.linears.push_back(random_linear("mlp.down_proj", 5, 43, bits, 10, Grid::kAsymAwq, 2));
  block.linears[0].record = {{"error", 0.25}};
  block.linears[0].group_of_column = HostTensor(DType::kI32, {64});
  for (std::int32_t k = 0; k < 64; ++k)
    block.linears[0].group_of_column.as<std::int32_t>()[k] = k % 4;
  block.replaced["input_layernorm.weight"] = HostTensor(DType::kBF16, {7});
  block.replaced["mlp.down_proj.bias"] = HostTensor(DType::kF32, {5});
  block.replaced["mlp.down_proj.bias"].as<float>()[4] = 0.5f;
  return block;
}

// Lookup tables; the first linear has a sparse part, the second one of no entries.
QuantizedBlock table_example(int bits) {
  QuantizedBlock block;
  block.block = 1;
  block.record = nlohmann::json::object();
  block.linears.push_back(random_table_linear("self_attn.q_proj", 32, 64, bits, 3));
  block.linears.push_back(random_table_linear("mlp.down_proj", 5, 43, bits, 4));
  block.linears[0].sparse = random_sparse_part(block.linears[0], 0.03, 5);
  block.linears[1].sparse = random_sparse_part(block.linears[1], 0, 6);
  return block;
}

void expect_equal(const HostTensor& a, const HostTensor& b, const std::string& what) {
  EXPECT_EQ(a.type(), b.type()) << what;
  EXPECT_EQ(a.shape(), b.shape()) << what;
  EXPECT_TRUE(std::ranges::equal(a.bytes(), b.bytes())) << what;
}

TEST(BlockRecordTest, GivesBackWhatItWasMadeOf) {
  std::vector<QuantizedBlock> blocks;
  for (const int bits : {2, 3, 4, 8}) blocks.push_back(example(bits));
  blocks.back().linears[1].sparse = random_sparse_part(blocks.back().linears[1], 0.1, 7);
  for (const int bits : {2, 3, 4}) blocks.push_back(table_example(bits));
  for (const QuantizedBlock& block : blocks) {
    const QuantizedBlock back = block_from_record(to_record(block), TwoLinears());
    EXPECT_EQ(back.block, block.block);
    EXPECT_EQ(back.record, block.record);
    ASSERT_EQ(back.linears.size(), 2u);
    for (std::size_t i = 0; i < 2; ++i) {
      const QuantizedLinear &a = block.linears[i], &b = back.linears[i];
      const std::string what = a.name + ", " + std::to_string(a.bits) + " bits";
      EXPECT_EQ(b.name, a.name);
      EXPECT_EQ(b.bits, a.bits);
      EXPECT_EQ(b.grid, a.grid);
      EXPECT_EQ(b.group_size, a.group_size);
      EXPECT_EQ(b.record, a.record);
      expect_equal(b.codes, a.codes, what);
      expect_equal(b.scales, a.scales, what);
      expect_equal(b.zeros, a.zeros, what);
      expect_equal(b.group_of_column, a.group_of_column, what);
      expect_equal(b.table, a.table, what);
      expect_equal(b.sparse.offsets, a.sparse.offsets, what);
      expect_equal(b.sparse.columns, a.sparse.columns, what);
      expect_equal(b.sparse.values, a.sparse.values, what);
    }
    ASSERT_EQ(back.replaced.size(), block.replaced.size());
    for (const auto& [name, tensor] : block.replaced) {
      expect_equal(back.replaced.at(name), tensor, name);
    }
  }
}

TEST(BlockRecordTest, PacksCodesAtTheirBits) {
  const Record record = to_record(example(3));
  const HostTensor& codes = record.tensors.at("mlp.down_proj.codes");
  EXPECT_EQ(codes.type(), DType::kU32);
  EXPECT_EQ(codes.shape(), (Shape{5, 5}));  // 43 x 3 bits in 5 words
  EXPECT_FALSE(record.tensors.contains("mlp.down_proj.group_of_column"));
}

// Whatever its place, and however many threads look; of two the first is named.
TEST(BlockRecordTest, RefusesCodesBeyondTheirBits) {
  for (const int threads : {1, 3}) {
    set_host_threads(threads);
    for (const int bits : {2, 3, 4}) {
      const QuantizedBlock whole = example(bits);
      for (const std::size_t linear : {0u, 1u}) {
        const auto count = static_cast<std::size_t>(whole.linears[linear].codes.count());
        for (const std::size_t at : {std::size_t{0}, count / 2, count - 1}) {
          QuantizedBlock block = whole;
          block.linears[linear].codes.as<std::uint8_t>()[at] = static_cast<std::uint8_t>(1 << bits);
          block.linears[1].codes.as<std::uint8_t>()[0] |= static_cast<std::uint8_t>(1 << bits);
          try {
            (void)to_record(block);
            ADD_FAILURE() << bits << " bits, code " << at;
          } catch (const Error& error) {
            EXPECT_EQ(error.what(), "quantized linear " + whole.linears[linear].name +
                                        ": a code of more than " + std::to_string(bits) + " bits");
          }
        }
      }
    }
  }
  set_host_threads(1);
}

TEST(BlockRecordTest, SaysInItsAttributesWhatEachLinearIs) {
  const Record record = to_record(table_example(3));
  const nlohmann::json& linears = record.attributes.at("linears");
  EXPECT_EQ(linears[0].at("grid"), "table");
  EXPECT_FALSE(linears[0].contains("group_size"));
  EXPECT_EQ(linears[0].at("sparse"), record.tensors.at("self_attn.q_proj.sparse.values").count());
  EXPECT_EQ(linears[1].at("sparse"), 0);
  EXPECT_EQ(record.tensors.at("mlp.down_proj.table").shape(), (Shape{5, 8}));
  EXPECT_FALSE(record.tensors.contains("mlp.down_proj.scales"));
  EXPECT_FALSE(to_record(example(3)).attributes.at("linears")[0].contains("sparse"));
}

TEST(BlockRecordTest, HoldsNothingOfALinearThatIsLeftAsItIs) {
  QuantizedBlock block = example(6);
  block.linears[0] = QuantizedLinear::kept("self_attn.q_proj", 32, 64);
  Record record = to_record(block);
  EXPECT_EQ(record.attributes.at("version"), 3);
  EXPECT_EQ(to_record(example(6)).attributes.at("version"), 2);
  for (const auto& [name, tensor] : record.tensors) EXPECT_FALSE(name.starts_with("self_attn"));
  const QuantizedBlock back = block_from_record(record, TwoLinears());
  EXPECT_TRUE(back.linears[0].original);
  EXPECT_EQ(back.linears[0].rows, 32);
  EXPECT_FALSE(back.linears[1].original);
  EXPECT_EQ(back.linears[1].bits, 6);
  const auto schemes = schemes_from_attributes(record.attributes, TwoLinears());
  EXPECT_TRUE(schemes[0].scheme.is_original());
  EXPECT_FALSE(schemes[1].scheme.is_original());
  record.tensors["self_attn.q_proj.codes"] = HostTensor(DType::kU32, {32, 8});
  EXPECT_THROW(block_from_record(record, TwoLinears()), Error);
  // 16 bits a weight.
  EXPECT_EQ(bits_per_weight({back.linears[0]}).dense, 16);
}

struct Fault {
  const char* what;
  std::function<void(Record&)> make;
  const char* message;
};

void expect_refused(const QuantizedBlock& block, const std::vector<Fault>& faults) {
  for (const Fault& fault : faults) {
    Record record = to_record(block);
    fault.make(record);
    try {
      block_from_record(record, TwoLinears());
      ADD_FAILURE() << "accepted " << fault.what;
    } catch (const Error& error) {
      EXPECT_THAT(error.what(), HasSubstr(fault.message)) << fault.what;
    }
  }
}

TEST(BlockRecordTest, RefusesWhatDoesNotFit) {
  const auto linear = [](Record& record, int i) -> nlohmann::json& {
    return record.attributes["linears"][i];
  };
  const std::vector<Fault> faults = {
      {"no attributes", [](Record& r) { r.attributes = nlohmann::json::object(); }, "attributes"},
      {"attributes of another kind", [](Record& r) { r.attributes = "text"; }, "attributes"},
      {"another version", [](Record& r) { r.attributes["version"] = 9; }, "version 9"},
      {"a negative block", [](Record& r) { r.attributes["block"] = -1; }, "block -1"},
      {"no list", [](Record& r) { r.attributes["linears"] = 3; }, "linears"},
      {"a linear less", [](Record& r) { r.attributes["linears"].erase(1); }, "1 linears"},
      {"another name", [&](Record& r) { linear(r, 0)["name"] = "x"; },
       "'x' where self_attn.q_proj"},
      {"another order", [&](Record& r) { std::swap(linear(r, 0), linear(r, 1)); }, "should be"},
      {"bits out of range", [&](Record& r) { linear(r, 0)["bits"] = 9; }, "q_proj: 9 bits"},
      {"other bits than packed", [&](Record& r) { linear(r, 0)["bits"] = 8; }, "q_proj.codes"},
      {"bits as text", [&](Record& r) { linear(r, 0)["bits"] = "4"; }, "attributes"},
      {"an unknown grid", [&](Record& r) { linear(r, 1)["grid"] = "B-gptq"; },
       "down_proj: unknown grid 'B-gptq'"},
      {"other rows", [&](Record& r) { linear(r, 1)["rows"] = 6; }, "down_proj: 6 x 43"},
      {"group size 0", [&](Record& r) { linear(r, 1)["group_size"] = 0; },
       "down_proj: group size 0"},
      {"a larger group than the row", [&](Record& r) { linear(r, 1)["group_size"] = 44; },
       "group size 44"},
      {"other groups than stored", [&](Record& r) { linear(r, 1)["group_size"] = 8; },
       "down_proj.scales"},
      {"a replaced tensor that the block does not have",
       [](Record& r) { r.tensors["replaced.norm.weight"] = HostTensor(DType::kF16, {7}); },
       "norm.weight is no norm and no bias"},
      {"a replaced linear",
       [](Record& r) {
         r.tensors["replaced.mlp.down_proj.weight"] = HostTensor(DType::kF16, {5, 43});
       },
       "mlp.down_proj.weight is no norm and no bias"},
      {"a replaced norm of another size",
       [](Record& r) {
         r.tensors["replaced.input_layernorm.weight"] = HostTensor(DType::kBF16, {8});
       },
       "input_layernorm.weight has the wrong shape"},
      {"a replaced norm of whole numbers",
       [](Record& r) {
         r.tensors["replaced.input_layernorm.weight"] = HostTensor(DType::kI32, {7});
       },
       "input_layernorm.weight is of type I32"},
      {"a replaced bias that is not finite",
       [](Record& r) {
         r.tensors["replaced.mlp.down_proj.bias"].as<float>()[0] =
             std::numeric_limits<float>::infinity();
       },
       "mlp.down_proj.bias"},
      {"missing codes", [](Record& r) { r.tensors.erase("mlp.down_proj.codes"); },
       "down_proj.codes is missing"},
      {"zeros of another type",
       [](Record& r) {
         r.tensors["mlp.down_proj.zeros"] = HostTensor(DType::kI32, {5, 5});
       },
       "down_proj.zeros has the wrong type"},
      {"a tensor of nobody", [](Record& r) { r.tensors["x"] = HostTensor(DType::kU8, {1}); },
       "no linear"},
      {"a code after the last column",
       [](Record& r) { r.tensors["mlp.down_proj.codes"].as<std::uint32_t>()[5] |= 0x80000000; },
       "past the last"},
      {"a zero point out of range",
       [](Record& r) { r.tensors["mlp.down_proj.zeros"].as<std::uint8_t>()[0] = 16; },
       "mlp.down_proj"},
      {"an infinite scale",
       [](Record& r) { r.tensors["mlp.down_proj.scales"].as<std::uint16_t>()[0] = 0x7c00; },
       "mlp.down_proj"},
      {"a group out of range",
       [](Record& r) { r.tensors["self_attn.q_proj.group_of_column"].as<std::int32_t>()[9] = 4; },
       "self_attn.q_proj"},
  };
  expect_refused(example(4), faults);
}

TEST(BlockRecordTest, RefusesTablesAndSparsePartsThatDoNotFit) {
  const auto linear = [](Record& record, int i) -> nlohmann::json& {
    return record.attributes["linears"][i];
  };
  const auto columns = [](Record& record) {
    return record.tensors["self_attn.q_proj.sparse.columns"].as<std::int32_t>();
  };
  const auto offsets = [](Record& record) {
    return record.tensors["self_attn.q_proj.sparse.offsets"].as<std::int32_t>();
  };
  const std::vector<Fault> faults = {
      {"no table", [](Record& r) { r.tensors.erase("mlp.down_proj.table"); },
       "down_proj.table is missing"},
      {"a table of other bits",
       [](Record& r) {
         r.tensors["mlp.down_proj.table"] = HostTensor(DType::kF16, {5, 8});
       },
       "down_proj.table has the wrong type or shape"},
      {"a table of 8 bits", [&](Record& r) { linear(r, 1)["bits"] = 8; }, "mlp.down_proj.codes"},
      {"an infinite value of a table",
       [](Record& r) { r.tensors["mlp.down_proj.table"].as<std::uint16_t>()[9] = 0xfc00; },
       "mlp.down_proj: a value of its table that is not finite"},
      {"scales beside a table",
       [](Record& r) {
         r.tensors["mlp.down_proj.scales"] = HostTensor(DType::kF16, {5, 1});
       },
       "no linear"},
      {"a grid in the place of a table", [&](Record& r) { linear(r, 1)["grid"] = "A-gptq"; },
       "group_size"},
      {"a sparse part that is not announced", [&](Record& r) { linear(r, 0).erase("sparse"); },
       "no linear"},
      {"other entries than announced", [&](Record& r) { linear(r, 0)["sparse"] = 1; },
       "q_proj.sparse.columns has the wrong type or shape"},
      {"less than no entries", [&](Record& r) { linear(r, 0)["sparse"] = -1; },
       "q_proj: a sparse part of -1 entries"},
      {"more entries than weights", [&](Record& r) { linear(r, 0)["sparse"] = 32 * 64 + 1; },
       "q_proj: a sparse part of 2049 entries"},
      {"no offsets", [](Record& r) { r.tensors.erase("self_attn.q_proj.sparse.offsets"); },
       "q_proj.sparse.offsets is missing"},
      {"offsets that fall", [&](Record& r) { offsets(r)[3] = offsets(r)[4] + 1; },
       "q_proj: sparse part: offsets"},
      {"offsets beyond the entries", [&](Record& r) { ++offsets(r)[32]; },
       "q_proj: sparse part: columns"},
      {"a huge offset", [&](Record& r) { offsets(r)[2] = 1 << 30; },
       "q_proj: sparse part: offsets"},
      {"a column beyond the last", [&](Record& r) { columns(r).back() = 64; },
       "a column that is not there"},
      {"a column before the first", [&](Record& r) { columns(r).front() = -1; },
       "a column that is not there"},
      {"a column twice",
       [&](Record& r) {
         for (std::size_t i = 1; i < columns(r).size(); ++i) columns(r)[i] = columns(r)[i - 1];
       },
       "columns must ascend"},
      {"a sparse value that is no number",
       [](Record& r) {
         r.tensors["self_attn.q_proj.sparse.values"].as<std::uint16_t>()[0] = 0x7e00;
       },
       "a value that is not finite"},
  };
  expect_refused(table_example(4), faults);
}

TEST(RunStoreTest, KeysCarryBlocksAndShards) {
  EXPECT_EQ(block_key("gptq-w4g128", 7), "recipes/gptq-w4g128/block-0007");
  EXPECT_EQ(snapshot_key("gptq-w4g128", 8, 3),
            "recipes/gptq-w4g128/activations/after-0008/shard-03");
  EXPECT_EQ(shared_snapshot_key("default", 8, 3), "activations/after-0008/shard-03");
  EXPECT_EQ(shared_snapshot_key("awq", 8, 3), "activations/of-awq/after-0008/shard-03");
}

TEST(MemoryStoreTest, KeepsRecords) {
  MemoryStore store;
  EXPECT_FALSE(store.has("a"));
  EXPECT_FALSE(store.load("a"));
  store.commit("a", {{{"t", HostTensor(DType::kU8, {2})}}, {{"n", 1}}});
  store.commit("a", {{{"t", HostTensor(DType::kU8, {3})}}, {{"n", 2}}});
  ASSERT_TRUE(store.has("a"));
  EXPECT_EQ(store.load("a")->attributes["n"], 2);
  EXPECT_EQ(store.load("a")->tensors.at("t").shape(), (Shape{3}));
  store.remove("a");
  store.remove("a");
  EXPECT_FALSE(store.has("a"));
}

TEST(MemoryStoreTest, FailsFromTheNthWriteOn) {
  MemoryStore store;
  store.commit("a", {{}, 1});
  store.fail_at_write(2);
  store.commit("b", {});
  EXPECT_THROW(store.commit("a", {{}, 2}), Error);
  EXPECT_THROW(store.commit("c", {}), Error);
  EXPECT_EQ(store.load("a")->attributes, 1) << "the old record must be intact";
  EXPECT_THAT(store.keys(), ElementsAre("a", "b"));
  store.fail_at_write(0);
  store.commit("c", {});
  EXPECT_EQ(store.writes(), 3);
}

TEST(MemoryStoreTest, ReportsDamageOnce) {
  MemoryStore store;
  std::vector<std::string> reports;
  store.on_damage = [&](const std::string& key, const std::string&) { reports.push_back(key); };
  store.commit("a", {});
  store.damage("a");
  EXPECT_FALSE(store.has("a"));
  EXPECT_FALSE(store.load("a"));
  EXPECT_THAT(reports, ElementsAre("a"));
  store.commit("a", {});
  EXPECT_TRUE(store.load("a"));
}

}  // namespace
}  // namespace roundhouse
