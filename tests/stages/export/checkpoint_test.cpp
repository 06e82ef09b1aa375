// Whole exports, on any number of ranks: what is in the directory, that ranks make no difference,
// and what is left when something fails.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/resource.h>

#include <cmath>
#include <csignal>
#include <cstring>
#include <fstream>
#include <map>
#include <optional>
#include <set>

#include "base/error.h"
#include "base/file.h"
#include "model/checkpoint/gguf.h"
#include "model/checkpoint/safetensors.h"
#include "stages/export/compare.h"
#include "stages/export/containers/gguf_container.h"
#include "stages/export/export.h"
#include "stages/export/output_folder.h"
#include "stages/export/sha256sums.h"
#include "stages/export/side_files.h"
#include "stages/quantize/methods.h"
#include "stages/store/block_record.h"
#include "stages/store/quantized_weights.h"
#include "tests/comm/mpi_world.h"
#include "tests/stages/export_world.h"
#include "tests/support/memory_store.h"

namespace roundhouse {
namespace {

namespace fs = std::filesystem;
using testing::Contains;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

// One directory for all ranks, made and removed by rank 0.
class SharedDirectory {
 public:
  explicit SharedDirectory(Communicator& world) : world_(world) {
    if (world.rank() == 0) mine_.emplace();
    char name[512] = {};
    if (mine_) std::snprintf(name, sizeof name, "%s", mine_->path().c_str());
    world.broadcast(std::as_writable_bytes(std::span(name)), 0);
    path_ = name;
  }
  ~SharedDirectory() { world_.barrier(); }
  const fs::path& path() const { return path_; }

 private:
  Communicator& world_;
  std::optional<TemporaryFolder> mine_;
  fs::path path_;
};

class ExportTest : public testing::Test {
 protected:
  // Quantizes a mini model; each rank has a store of its own with the same records.
  void prepare(const MiniModel& options = {}, int bits = 4, std::int64_t group_size = 32,
               Grid grid = Grid::kAsymGptq) {
    if (world_.rank() == 0) write_mini_model(source(), options);
    world_.barrier();
    model_ = std::make_unique<CausalLM>(source());
    decoder_ = make_decoder_block(model_->config(), 16, *backend_);
    recipe_ = rounding_recipe(bits, group_size, grid);
    round_to_nearest(*model_, *decoder_, recipe_, *backend_, store_);
  }

  bool write(const fs::path& directory, const ExportOptions& options, Communicator& world) {
    return export_checkpoint(*model_, *decoder_, recipe_, store_, options, directory, world,
                             *monitor_);
  }
  bool write(const fs::path& directory, const ExportOptions& options) {
    return write(directory, options, world_);
  }

  // The message with which every rank must fail.
  std::string failure(const fs::path& directory, const ExportOptions& options) {
    try {
      write(directory, options);
    } catch (const Error& error) {
      return error.what();
    }
    return "no failure on rank " + std::to_string(world_.rank());
  }

  fs::path source() const { return shared_.path() / "source"; }
  fs::path out() const { return shared_.path() / "out"; }
  std::vector<std::string> listing(const fs::path& directory) const {
    std::vector<std::string> names;
    for (const fs::directory_entry& entry : fs::directory_iterator(directory)) {
      names.push_back(entry.path().filename().string());
    }
    std::ranges::sort(names);
    return names;
  }

  Communicator& world_ = test_world();
  SharedDirectory shared_{world_};
  std::unique_ptr<Backend> backend_ = make_backend("cpu", {});
  std::unique_ptr<CausalLM> model_;
  std::unique_ptr<DecoderBlock> decoder_;
  Recipe recipe_;
  MemoryStore store_;
  NullMonitor silent_;
  Monitor* monitor_ = &silent_;
};

void append(const fs::path& file, const std::string& text) {
  std::ofstream(file, std::ios::app) << text;
}

// Asks to stop once this rank has begun with a file of weights.
class StoppingMonitor final : public Monitor {
 public:
  void phase(const std::string& what) override { begun_ += what.find(": model-") != what.npos; }
  void tick() override {}
  void event(const nlohmann::json&) override {}
  void say(const std::string&) override {}
  bool stop_requested() override { return begun_ > 0; }
  int begun() const { return begun_; }

 private:
  int begun_ = 0;
};

TEST_F(ExportTest, AStopIsLookedAtBetweenFiles) {
  prepare();
  const ExportOptions options{.format = "dense", .max_shard_bytes = 20000};
  StoppingMonitor stopping;
  monitor_ = &stopping;
  EXPECT_FALSE(write(out(), options));
  EXPECT_LE(stopping.begun(), 1) << "files after the wish to stop";
  EXPECT_FALSE(fs::exists(out()));
  EXPECT_FALSE(fs::exists(out().native() + ".partial"));
  world_.barrier();
  monitor_ = &silent_;
  EXPECT_TRUE(write(out(), options));
  EXPECT_THAT(verify_checkpoint(out()), IsEmpty());
}

TEST_F(ExportTest, FillsADirectory) {
  prepare();
  write(out(), {.format = "compressed-tensors"});
  EXPECT_THAT(listing(out()),
              ElementsAre("SHA256SUMS", "config.json", "generation_config.json",
                          "model.safetensors", "tokenizer.model", "tokenizer_config.json"));
  EXPECT_THAT(listing(shared_.path()), ElementsAre("out", "source"));
  EXPECT_THAT(verify_checkpoint(out()), IsEmpty());
  for (const char* name : {"generation_config.json", "tokenizer.model", "tokenizer_config.json"}) {
    EXPECT_EQ(read_text_file(out() / name), read_text_file(source() / name)) << name;
  }
}

TEST_F(ExportTest, WritesSumsForTheOrdinaryTool) {
  prepare();
  write(out(), {.format = "gptq"});
  if (std::system("command -v sha256sum > /dev/null") != 0)
    GTEST_SKIP() << "there is no sha256sum here";
  const std::string command =
      "cd '" + out().string() + "' && sha256sum --quiet --strict -c SHA256SUMS";
  EXPECT_EQ(std::system(command.c_str()), 0);
}

TEST_F(ExportTest, KeepsTheConfigAndAddsToIt) {
  prepare();
  write(out(), {.format = "gptq"});
  auto before = nlohmann::ordered_json::parse(read_text_file(source() / "config.json"));
  const auto after = nlohmann::ordered_json::parse(read_text_file(out() / "config.json"));
  const auto copy = nlohmann::ordered_json::parse(read_text_file(out() / "quantize_config.json"));
  before["quantization_config"] = copy;
  EXPECT_EQ(after.dump(), before.dump()) << "the same keys in the same order";
  EXPECT_EQ(copy["format"], "gptq_v2");
}

TEST_F(ExportTest, HoldsEveryTensorOnce) {
  prepare({.blocks = 2});
  write(out(), {.format = "gptq"});
  const SafetensorsFile file(out() / "model.safetensors");
  std::vector<std::string> names = file.names();
  std::vector<std::string> expected = {"model.embed_tokens.weight", "model.norm.weight",
                                       "lm_head.weight"};
  for (const char* block : {"model.layers.0.", "model.layers.1."}) {
    for (const char* norm : {"input_layernorm.weight", "post_attention_layernorm.weight"}) {
      expected.push_back(std::string(block) + norm);
    }
    for (const char* linear :
         {"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
          "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"}) {
      for (const char* part : {".qweight", ".qzeros", ".scales", ".g_idx"}) {
        expected.push_back(std::string(block) + linear + part);
      }
    }
  }
  EXPECT_THAT(names, testing::UnorderedElementsAreArray(expected));
  EXPECT_EQ(file.view("model.norm.weight").type, DType::kF32) << "as in the checkpoint";
}

TEST_F(ExportTest, DenseReadsBackAsTheQuantizedModel) {
  prepare({}, 3, -1, Grid::kSymFull);
  write(out(), {.format = "dense", .dtype = DType::kF32});
  const CausalLM exported(out());
  EXPECT_EQ(exported.config().dtype, DType::kF32);
  for (int block = 0; block < 3; ++block) {
    const QuantizedBlock quantized =
        block_from_record(*store_.load(block_key(recipe_.name, block)), *decoder_);
    for (const QuantizedLinear& linear : quantized.linears) {
      const Tensor w = dequantize(linear, *backend_);
      HostTensor expected(DType::kF32, {linear.rows, linear.cols});
      backend_->download(w.f32(), expected.bytes());
      const HostView got = exported.checkpoint().weight(
          decoder_->prefix(block) + "." + linear.name + ".weight", expected.shape());
      EXPECT_TRUE(std::ranges::equal(got.bytes, expected.bytes())) << block << " " << linear.name;
    }
  }
  for (const std::string& name : model_->checkpoint().names()) {
    if (name.find("proj") != name.npos) continue;
    EXPECT_TRUE(std::ranges::equal(exported.checkpoint().view(name).bytes,
                                   model_->checkpoint().view(name).bytes))
        << name;
  }
}

TEST_F(ExportTest, WritesTheNormsThatTheMethodReplaced) {
  prepare();
  HostTensor norm(DType::kF32, {64});
  for (float& value : norm.as<float>()) value = 0.25f;
  QuantizedBlock block = block_from_record(*store_.load(block_key(recipe_.name, 1)), *decoder_);
  block.replaced["post_attention_layernorm.weight"] = norm;
  store_.commit(block_key(recipe_.name, 1), to_record(block));
  for (const char* format : {"dense", "compressed-tensors", "gptq", "awq"}) {
    write(out() / format, {.format = format, .dtype = DType::kF32});
    const SafetensorsFile file(out() / format / "model.safetensors");
    for (const char* name : {"0.post_attention_layernorm.weight", "1.input_layernorm.weight",
                             "1.post_attention_layernorm.weight"}) {
      const std::string full = std::string("model.layers.") + name;
      const HostView want =
          name[0] == '1' && name[2] == 'p' ? norm.view() : model_->checkpoint().view(full);
      EXPECT_TRUE(std::ranges::equal(file.view(full).bytes, want.bytes)) << format << " " << name;
    }
  }

  // A bias for a linear that has none would be lost.
  block.replaced["mlp.up_proj.bias"] = HostTensor(DType::kF32, {96});
  store_.commit(block_key(recipe_.name, 1), to_record(block));
  EXPECT_THAT(failure(out() / "other", {.format = "dense"}),
              HasSubstr("replaces mlp.up_proj.bias, which the original does not have"));
}

TEST_F(ExportTest, KeepsTheTypeOfTheCheckpoint) {
  for (const DType type : {DType::kBF16, DType::kF16, DType::kF32}) {
    prepare({.dtype = type, .norm_value = 3e4f});
    for (const char* format : {"compressed-tensors", "dense"}) {
      write(out() / format, {.format = format});
      const auto config = nlohmann::json::parse(read_text_file(out() / format / "config.json"));
      EXPECT_EQ(config["torch_dtype"], torch_name_of(type));
      const SafetensorsFile file(out() / format / "model.safetensors");
      for (const char* name : {"model.embed_tokens.weight", "model.norm.weight", "lm_head.weight",
                               "model.layers.2.input_layernorm.weight"}) {
        EXPECT_EQ(file.view(name).type, type) << format << " " << name;
        EXPECT_TRUE(
            std::ranges::equal(file.view(name).bytes, model_->checkpoint().view(name).bytes));
      }
      if (std::string(format) == "dense") {
        EXPECT_EQ(file.view("model.layers.0.mlp.up_proj.weight").type, type);
      }
    }
    write(out() / "asked", {.format = "dense", .dtype = DType::kBF16});
    EXPECT_EQ(SafetensorsFile(out() / "asked" / "model.safetensors").view("model.norm.weight").type,
              DType::kBF16);
  }
}

TEST_F(ExportTest, CarriesAlongWhatIsNoWeight) {
  prepare();
  if (world_.rank() == 0) {
    for (const char* name : {"LICENSE", "modeling_tiny.py", "chat_template.json",
                             "additional_chat_templates/tool.jinja", "pytorch_model.bin",
                             "model.gguf", "model.safetensors.index.json", ".hidden/secret",
                             "checkpoint-10/config.json", "checkpoint-10/LICENSE", "SHA256SUMS"}) {
      write_text_atomically(source() / name, name);
    }
    // Runs within the model's folder go on being written, and their exports are models of their own.
    for (const char* name : {"runs/a/identity.json", "runs/a/config.yaml", "runs/a/journal.jsonl",
                             "runs/a/recipes/x/block-0000.h5", "out/gptq/SHA256SUMS",
                             "out/gptq/config.json", "out/gptq.json"}) {
      write_text_atomically(source() / name, name);
    }
    fs::create_directory_symlink(shared_.path(), source() / "loop");
    fs::create_symlink(source() / "LICENSE", source() / "NOTICE");
  }
  world_.barrier();
  write(out(), {.format = "compressed-tensors"});
  EXPECT_THAT(listing(out()),
              ElementsAre("LICENSE", "NOTICE", "SHA256SUMS", "additional_chat_templates",
                          "chat_template.json", "config.json", "generation_config.json",
                          "model.safetensors", "modeling_tiny.py", "tokenizer.model",
                          "tokenizer_config.json"));
  EXPECT_EQ(read_text_file(out() / "additional_chat_templates/tool.jinja"),
            "additional_chat_templates/tool.jinja");
  EXPECT_FALSE(fs::is_symlink(out() / "NOTICE"));
  EXPECT_THAT(side_files(source()).left,
              ElementsAre("checkpoint-10/ (a model of its own)", "loop/ (a link)",
                          "out/gptq.json (the note of an export)", "out/gptq/ (a model of its own)",
                          "runs/a/ (a run)"));
  EXPECT_THAT(verify_checkpoint(out()), IsEmpty());
  world_.barrier();
  if (world_.rank() == 0) {
    fs::remove(out() / "additional_chat_templates/tool.jinja");
    EXPECT_THAT(verify_checkpoint(out()),
                ElementsAre("additional_chat_templates/tool.jinja: missing"));
  }
  world_.barrier();
}

TEST_F(ExportTest, LeavesOutATiedHead) {
  prepare({.tied = true});
  write(out(), {.format = "compressed-tensors"});
  const SafetensorsFile file(out() / "model.safetensors");
  EXPECT_FALSE(file.has("lm_head.weight"));
  EXPECT_TRUE(file.has("model.embed_tokens.weight"));
}

void write_tokenizer(const fs::path& directory);

// Whatever is quantized of a tensor that was both, the export has two.
TEST_F(ExportTest, TheHeadLeavesQuantizedAndUntied) {
  for (const bool tied : {false, true}) {
    for (const std::vector<std::string>& include :
         {std::vector<std::string>{"lm_head"}, {"embed_tokens"}, {"embed_tokens", "lm_head"}}) {
      const fs::path model = shared_.path() / (tied ? "tied" : "untied");
      if (world_.rank() == 0) {
        write_mini_model(model, {.blocks = 1, .hidden_size = 64, .tied = tied});
        write_tokenizer(model);
      }
      world_.barrier();
      model_ = std::make_unique<CausalLM>(model);
      decoder_ = make_decoder_block(model_->config(), 16, *backend_);
      recipe_ = rounding_recipe(4, 32, Grid::kSymGptq);
      recipe_.include = include;
      round_to_nearest(*model_, *decoder_, recipe_, *backend_, store_);
      const OuterLinears quantized =
          load_outer_linears(*decoder_->outer(include), store_, recipe_.name, 1);
      const ExportOptions dense{.format = "dense", .dtype = DType::kF32};
      write(out() / "dense", dense);
      const CausalLM exported(out() / "dense");
      EXPECT_FALSE(exported.config().tied_embeddings);
      const auto expect = [&](const std::string& name, const std::optional<QuantizedLinear>& is,
                              const std::string& source) {
        const HostView got = exported.checkpoint().view(name);
        HostTensor expected(DType::kF32, {48, 64});
        if (is) {
          backend_->download(dequantize(*is, *backend_).f32(), expected.bytes());
        } else {
          std::ranges::copy(model_->checkpoint().view(source).bytes, expected.bytes().begin());
        }
        EXPECT_TRUE(std::ranges::equal(got.bytes, expected.bytes())) << name << " " << tied;
      };
      expect("model.embed_tokens.weight", quantized.embedding, "model.embed_tokens.weight");
      expect("lm_head.weight", quantized.head,
             tied ? "model.embed_tokens.weight" : "lm_head.weight");
      for (const char* format : {"dense", "gguf"}) {
        const ExportOptions options{.format = format, .dtype = DType::kF32};
        write(out() / format, options);
        EXPECT_THAT(compare_export(*model_, *decoder_, recipe_, store_, options, out() / format,
                                   world_, *monitor_)
                        .value(),
                    IsEmpty());
      }
    }
  }
}

TEST_F(ExportTest, FormatsSayWhetherTheyHoldAHead) {
  prepare({.intermediate_size = 128, .tied = true}, 4, 32, Grid::kSymGptq);
  recipe_.options = {{"bits", 4}, {"group_size", 32}, {"symmetric", true}};
  recipe_.include = {"lm_head"};
  recipe_.overrides = {{.match = "lm_head",
                        .scheme = LinearScheme{.bits = 8, .group_size = 32, .grid = Grid::kSymGptq},
                        .given = {{"match", "lm_head"}, {"bits", 8}}}};
  recipe_.schemes.push_back(*recipe_.overrides[0].scheme);
  const auto refusal = [&](const char* format) -> std::string {
    try {
      check_exportable(recipe_, *decoder_, 3, format);
    } catch (const InputError& error) {
      return error.what();
    }
    return "";
  };
  EXPECT_THAT(refusal("auto_round"),
              HasSubstr("no place for a quantized lm_head; the formats 'compressed-tensors', "
                        "'gptq', 'gguf' and 'dense' have"));
  // 48 rows are no multiple of 32.
  EXPECT_THAT(refusal("gptq"), HasSubstr("lm_head is 48 x 64"));
  recipe_.include = {"embed_tokens"};
  EXPECT_THAT(refusal("compressed-tensors"),
              HasSubstr("quantized embed_tokens; the formats 'gguf' and 'dense' have"));
}

TEST_F(ExportTest, CutsFilesBySize) {
  prepare({.dtype = DType::kF16});
  constexpr std::int64_t kLimit =
      13000;  // the largest linear of this model has 12288 bytes in float16
  for (const char* format : {"compressed-tensors", "gptq", "dense"}) {
    const fs::path single = shared_.path() / (std::string(format) + "-single");
    const fs::path many = shared_.path() / (std::string(format) + "-many");
    write(single, {.format = format});
    write(many, {.format = format, .max_shard_bytes = kLimit});
    EXPECT_FALSE(fs::exists(many / "model.safetensors"));
    EXPECT_THAT(verify_checkpoint(many), IsEmpty());

    const auto index = nlohmann::json::parse(read_text_file(many / "model.safetensors.index.json"));
    const SafetensorsFile all(single / "model.safetensors");
    EXPECT_EQ(index["weight_map"].size(), all.names().size());
    std::map<std::string, std::int64_t> bytes_of;
    std::int64_t total = 0;
    for (const auto& [name, file_name] : index["weight_map"].items()) {
      const SafetensorsFile file(many / file_name.get<std::string>());
      const HostView a = all.view(name), b = file.view(name);
      EXPECT_EQ(a.type, b.type) << name;
      EXPECT_EQ(a.shape, b.shape) << name;
      EXPECT_TRUE(std::ranges::equal(a.bytes, b.bytes)) << name;
      bytes_of[file_name.get<std::string>()] += static_cast<std::int64_t>(b.bytes.size());
      total += static_cast<std::int64_t>(b.bytes.size());
    }
    EXPECT_EQ(index["metadata"]["total_size"], total);
    ASSERT_GT(bytes_of.size(), 4u);
    char first[64], last[64];
    std::snprintf(first, sizeof first, "model-00001-of-%05zu.safetensors", bytes_of.size());
    std::snprintf(last, sizeof last, "model-%05zu-of-%05zu.safetensors", bytes_of.size(),
                  bytes_of.size());
    EXPECT_EQ(bytes_of.begin()->first, first);
    EXPECT_EQ(bytes_of.rbegin()->first, last);
    for (const auto& [name, bytes] : bytes_of) {
      EXPECT_LE(bytes, kLimit) << name;
    }
  }
}

TEST_F(ExportTest, IsTheSameOnAnyNumberOfRanks) {
  prepare({.dtype = DType::kBF16}, 3, 32, Grid::kAsymAwq);
  const auto alone = make_local_communicator();
  for (const char* format : {"compressed-tensors", "gptq", "auto_round", "dense"}) {
    const ExportOptions options{.format = format, .max_shard_bytes = 15000};
    const fs::path together = shared_.path() / (std::string(format) + "-together");
    const fs::path by_one = shared_.path() / (std::string(format) + "-by-one");
    write(together, options);
    if (world_.rank() == 0) {
      write(by_one, options, *alone);
      EXPECT_EQ(read_text_file(together / "SHA256SUMS"), read_text_file(by_one / "SHA256SUMS"))
          << format;
    }
    world_.barrier();
  }
}

TEST_F(ExportTest, ReplacesAnEarlierExport) {
  prepare();
  write(out(), {.format = "gptq", .max_shard_bytes = 20000});
  if (world_.rank() == 0) {
    fs::create_directory(shared_.path() / "out.partial");  // of a job that was killed
    append(shared_.path() / "out.partial" / "model.safetensors", "half");
  }
  world_.barrier();
  write(out() / "", {.format = "compressed-tensors"});
  EXPECT_TRUE(fs::exists(out() / "model.safetensors"));
  EXPECT_FALSE(fs::exists(out() / "quantize_config.json"));
  EXPECT_THAT(verify_checkpoint(out()), IsEmpty());
  EXPECT_THAT(listing(shared_.path()), ElementsAre("out", "source"));
}

TEST_F(ExportTest, DoesNotReplaceWhatIsNotAnExport) {
  prepare();
  EXPECT_THAT(failure(source(), {.format = "gptq"}), HasSubstr("is not an earlier export"));
  EXPECT_TRUE(fs::exists(source() / "model.safetensors"));
}

TEST_F(ExportTest, NamesWhatFloat16CannotHold) {
  prepare({.norm_value = 1e6f});
  EXPECT_THAT(failure(out(), {.format = "gptq", .dtype = DType::kF16}),
              HasSubstr("model.layers.2.input_layernorm.weight: 1000000"));
  EXPECT_THAT(listing(shared_.path()), ElementsAre("source"));
  EXPECT_THROW(check_kept_values(*model_, {.format = "gptq", .dtype = DType::kF16}), InputError);
  for (const auto type : {std::optional<DType>(), std::optional(DType::kBF16)})
    check_kept_values(*model_, {.format = "gptq", .dtype = type});
  write(out(), {.format = "gptq"});
  EXPECT_EQ(SafetensorsFile(out() / "model.safetensors").view("model.norm.weight").type,
            DType::kF32);
}

TEST_F(ExportTest, FailsBeforeAnyWork) {
  prepare();
  EXPECT_THAT(failure(out(), {.format = "exl2"}), HasSubstr("unknown export format"));
  EXPECT_THAT(failure(out(), {.format = "gptq", .dtype = DType::kI32}),
              HasSubstr("float16, bfloat16 or float32"));
  EXPECT_THAT(failure(out(), {.format = "gptq", .max_shard_bytes = 0}),
              HasSubstr("max_shard_bytes"));
  recipe_.schemes.front().group_size = 48;
  EXPECT_THAT(failure(out(), {.format = "gptq"}), HasSubstr("group size 48"));
  EXPECT_THAT(listing(shared_.path()), ElementsAre("source"));
}

TEST_F(ExportTest, RefusesBlocksThatAreNotOfTheRecipe) {
  prepare({.dtype = DType::kF16}, 4, 32, Grid::kSymGptq);
  const fs::path old = shared_.path() / "old";
  write(old, {.format = "gptq"});
  QuantizedBlock block = block_from_record(*store_.load(block_key(recipe_.name, 1)), *decoder_);
  block.linears[3] = random_linear(block.linears[3].name, 64, 64, 4, 32, Grid::kAsymGptq, 5);
  store_.commit(block_key(recipe_.name, 1), to_record(block));
  EXPECT_THAT(failure(out(), {.format = "gptq"}), HasSubstr("model.layers.1.self_attn.o_proj"));
  write(out(), {.format = "dense"});  // says nothing of them
}

// A code of a stream of 32-bit words, bit by bit.
int code_at_bit(std::span<const std::uint32_t> words, std::size_t first, std::size_t stride,
                std::size_t bit, int bits) {
  int code = 0;
  for (int i = 0; i < bits; ++i, ++bit)
    code |= static_cast<int>(words[first + bit / 32 * stride] >> bit % 32 & 1) << i;
  return code;
}

TEST_F(ExportTest, EachLinearKeepsItsOwnWidth) {
  prepare();
  recipe_.schemes = {
      {.bits = 4, .group_size = 32}, {.bits = 2, .group_size = 32}, {.bits = 3, .group_size = -1}};
  round_to_nearest(*model_, *decoder_, recipe_, *backend_, store_);
  write(out() / "ct", {.format = "compressed-tensors"});
  write(out() / "gptq", {.format = "gptq", .max_shard_bytes = 20000});
  EXPECT_THAT(verify_checkpoint(out() / "ct"), IsEmpty());
  const SafetensorsFile file(out() / "ct" / "model.safetensors");
  const auto config = nlohmann::json::parse(read_text_file(out() / "ct" / "config.json"));
  std::map<std::string, nlohmann::json> weights;  // by module
  for (const auto& [name, group] : config["quantization_config"]["config_groups"].items()) {
    for (const std::string module : group["targets"]) weights[module] = group["weights"];
  }
  std::set<int> widths;
  for (int block = 0; block < 3; ++block) {
    const QuantizedBlock quantized =
        block_from_record(*store_.load(block_key(recipe_.name, block)), *decoder_);
    EXPECT_EQ(quantized.linears[0].bits, quantized.linears[2].bits) << "q and v";
    for (const QuantizedLinear& linear : quantized.linears) {
      const std::string module = decoder_->prefix(block) + "." + linear.name;
      widths.insert(linear.bits);
      ASSERT_TRUE(weights.contains(module)) << module;
      EXPECT_EQ(weights[module]["num_bits"], linear.bits) << module;
      EXPECT_EQ(weights[module]["strategy"], linear.bits == 3 ? "channel" : "group") << module;
      const HostTensor packed = HostTensor::from(file.view(module + ".weight_packed"));
      ASSERT_EQ(packed.shape(), (Shape{linear.rows, linear.cols * linear.bits / 32})) << module;
      const auto words = packed.as<std::uint32_t>();
      for (std::size_t k = 0; k < static_cast<std::size_t>(linear.rows * linear.cols); ++k) {
        ASSERT_EQ(code_at_bit(words, 0, 1, k * linear.bits, linear.bits),
                  linear.codes.as<std::uint8_t>()[k])
            << module << " " << k;
      }
      EXPECT_TRUE(
          std::ranges::equal(file.view(module + ".weight_scale").bytes, linear.scales.bytes()));
    }
  }
  EXPECT_THAT(widths, ElementsAre(2, 3, 4));
  EXPECT_EQ(weights.size(), 21u);

  const auto gptq = nlohmann::json::parse(read_text_file(out() / "gptq" / "quantize_config.json"));
  EXPECT_TRUE(gptq.contains("dynamic"));
  EXPECT_TRUE(gptq["dynamic"].contains(R"(+:^model\.layers\.1\.self_attn\.qkv_proj$)"))
      << gptq["dynamic"];
}

// What is skipped leaves as it came, by its own name, and is on every list of what is left alone.
TEST_F(ExportTest, LeavesSkippedLinearsAloneAndSaysSo) {
  prepare();
  recipe_ = parse_recipe(nlohmann::json::parse(
      R"({"method": "rtn", "symmetric": true, "group_size": 32, "overrides": [
          {"match": "*.down_proj", "bits": 8}, {"match": "model.layers.1.self_attn.[qkv]_proj", "skip": true},
          {"match": "*.2.mlp.up_proj", "skip": true}]})"));
  const std::vector<std::string> skipped = {
      "model.layers.1.self_attn.q_proj", "model.layers.1.self_attn.k_proj",
      "model.layers.1.self_attn.v_proj", "model.layers.2.mlp.up_proj"};
  for (int block = 0; block < 3; ++block) {
    BlockWeights weights = decoder_->load(model_->checkpoint(), block, *backend_);
    ActivationBudget budget(0, std::filesystem::temp_directory_path());
    const nlohmann::json nothing;
    const auto alone = make_local_communicator();  // each rank has a store of its own
    BlockTask own{{*backend_, *alone, *alone, *decoder_, block, nullptr, *monitor_},
                  model_->checkpoint(),
                  weights,
                  nullptr,
                  nullptr,
                  budget,
                  0,
                  nothing};
    own.overrides = recipe_.overrides;
    QuantizedBlock made = make_method(recipe_)->quantize(own);
    made.record.erase("phases");
    store_.commit(block_key(recipe_.name, block), to_record(made));
  }
  for (const std::string format : {"compressed-tensors", "gptq", "dense"}) {
    check_exportable(recipe_, *decoder_, 3, format);
    write(out() / format, {.format = format});
    const SafetensorsFile file(out() / format / "model.safetensors");
    for (const std::string& module : skipped) {
      const HostView was = model_->checkpoint().view(module + ".weight");
      EXPECT_TRUE(std::ranges::equal(file.view(module + ".weight").bytes, was.bytes)) << module;
      EXPECT_FALSE(file.has(module + ".weight_packed"));
      EXPECT_FALSE(file.has(module + ".qweight"));
    }
    const auto config = nlohmann::json::parse(read_text_file(out() / format / "config.json"));
    if (format == "compressed-tensors") {
      const nlohmann::json& said = config["quantization_config"];
      std::vector<std::string> ignored = {"lm_head"};
      ignored.insert(ignored.end(), skipped.begin(), skipped.end());
      EXPECT_EQ(said["ignore"], nlohmann::json(ignored));
      EXPECT_EQ(said["config_groups"].size(), 2u);
      for (const auto& [name, group] : said["config_groups"].items()) {
        for (const std::string target : group["targets"])
          EXPECT_EQ(std::ranges::find(skipped, target), skipped.end()) << target;
      }
    } else if (format == "gptq") {
      const nlohmann::json& dynamic = config["quantization_config"]["dynamic"];
      EXPECT_EQ(dynamic[R"(+:^model\.layers\.0\.mlp\.down_proj$)"]["bits"], 8);
      EXPECT_TRUE(dynamic.contains(R"(-:^model\.layers\.1\.self_attn\.q_proj$)")) << dynamic;
      EXPECT_TRUE(dynamic.contains(R"(-:^model\.layers\.1\.self_attn\.qkv_proj$)")) << dynamic;
      EXPECT_TRUE(dynamic.contains(R"(-:^model\.layers\.2\.mlp\.up_proj$)")) << dynamic;
      EXPECT_FALSE(dynamic.contains(R"(-:^model\.layers\.2\.mlp\.gate_up_proj$)")) << dynamic;
    }
  }
  EXPECT_EQ(failure(out() / "awq", {.format = "awq"}).find("codes of 4 bits only, not of 8") ==
                std::string::npos,
            false);
  // Evaluation computes with the same weights.
  const BlockWeights loaded =
      load_quantized_weights(*model_, *decoder_, store_, recipe_.name, 1, *backend_);
  const BlockWeights original = decoder_->load(model_->checkpoint(), 1, *backend_);
  for (std::size_t i = 0; i < loaded.linears.size(); ++i) {
    std::vector<float> a(
        static_cast<std::size_t>(loaded.linears[i].rows() * loaded.linears[i].cols()));
    std::vector<float> b = a;
    backend_->download(loaded.linears[i].f32(), std::as_writable_bytes(std::span(a)));
    backend_->download(original.linears[i].f32(), std::as_writable_bytes(std::span(b)));
    EXPECT_EQ(a == b, i < 3) << i;
  }
  // A record of a linear that the recipe does not skip.
  recipe_.overrides.clear();
  EXPECT_THAT(failure(out() / "other", {.format = "dense"}), HasSubstr("left as it was"));
}

TEST_F(ExportTest, LookupTablesAndSparsePartsAddUpToTheDenseExport) {
  prepare();
  recipe_.schemes = {{.kind = LinearScheme::Kind::kTable, .bits = 3, .sparse = true}};
  round_to_nearest(*model_, *decoder_, recipe_, *backend_, store_);
  // One has a sparse part without entries.
  QuantizedBlock block = block_from_record(*store_.load(block_key(recipe_.name, 2)), *decoder_);
  block.linears[1].sparse = random_sparse_part(block.linears[1], 0, 1);
  store_.commit(block_key(recipe_.name, 2), to_record(block));
  write(out() / "squeezellm",
        {.format = "squeezellm", .dtype = DType::kF32, .max_shard_bytes = 40000});
  write(out() / "dense", {.format = "dense", .dtype = DType::kF32});
  EXPECT_THAT(verify_checkpoint(out() / "squeezellm"), IsEmpty());
  const auto index =
      nlohmann::json::parse(read_text_file(out() / "squeezellm/model.safetensors.index.json"));
  const auto read = [&](const std::string& name) {
    const SafetensorsFile file(out() / "squeezellm" /
                               index["weight_map"].at(name).get<std::string>());
    return HostTensor::from(file.view(name));
  };
  const SafetensorsFile dense(out() / "dense" / "model.safetensors");
  std::int64_t entries = 0;
  for (int i = 0; i < 3; ++i) {
    for (const LinearSpec& linear : decoder_->linears()) {
      const std::string module = decoder_->prefix(i) + "." + linear.name;
      const HostTensor qweight = read(module + ".qweight"), table = read(module + ".lookup_table"),
                       rows = read(module + ".rows"), cols = read(module + ".cols"),
                       vals = read(module + ".vals");
      ASSERT_EQ(qweight.shape(), (Shape{linear.cols * 3 / 32, linear.rows}));
      ASSERT_EQ(table.shape(), (Shape{linear.rows, 8}));
      HostTensor w(DType::kF32, {linear.rows, linear.cols});
      const auto n_rows = static_cast<std::size_t>(linear.rows);
      const auto n_cols = static_cast<std::size_t>(linear.cols);
      for (std::size_t row = 0; row < n_rows; ++row) {
        for (std::size_t col = 0; col < n_cols; ++col) {
          const int code = code_at_bit(qweight.as<std::uint32_t>(), row, n_rows, 3 * col, 3);
          w.as<float>()[row * n_cols + col] = table.as<float>()[row * 8 + code];
        }
        for (int at = rows.as<std::int32_t>()[row]; at < rows.as<std::int32_t>()[row + 1]; ++at)
          w.as<float>()[row * n_cols + cols.as<std::int32_t>()[at]] += vals.as<float>()[at];
      }
      entries += vals.count();
      EXPECT_TRUE(std::ranges::equal(w.bytes(), dense.view(module + ".weight").bytes)) << module;
    }
  }
  EXPECT_GT(entries, 100);
  EXPECT_EQ(read("model.layers.2.self_attn.k_proj.vals").count(), 0);
  EXPECT_THAT(failure(out() / "no", {.format = "gptq"}), HasSubstr("lookup table"));
}

TEST_F(ExportTest, MixedWidthsAndTablesAreTheSameOnAnyNumberOfRanks) {
  prepare();
  const auto alone = make_local_communicator();
  const auto expect_same = [&](const std::vector<LinearScheme>& schemes, const char* format) {
    recipe_.schemes = schemes;
    round_to_nearest(*model_, *decoder_, recipe_, *backend_, store_);
    const ExportOptions options{.format = format, .max_shard_bytes = 15000};
    const fs::path together = shared_.path() / (std::string(format) + "-together");
    const fs::path by_one = shared_.path() / (std::string(format) + "-by-one");
    write(together, options);
    if (world_.rank() == 0) {
      write(by_one, options, *alone);
      EXPECT_EQ(read_text_file(together / "SHA256SUMS"), read_text_file(by_one / "SHA256SUMS"))
          << format;
    }
    world_.barrier();
  };
  const std::vector<LinearScheme> mixed = {{.bits = 4, .group_size = 32},
                                           {.bits = 2, .group_size = 32}};
  expect_same(mixed, "compressed-tensors");
  expect_same(mixed, "gptq");
  expect_same({{.kind = LinearScheme::Kind::kTable, .bits = 2, .sparse = true}}, "squeezellm");
  expect_same({{.bits = 3, .group_size = 32}, {.bits = 2, .group_size = 32, .sparse = true}},
              "dense");
}

TEST_F(ExportTest, RefusesARecordThatTheRecipeDoesNotAnnounce) {
  prepare();
  QuantizedBlock block = block_from_record(*store_.load(block_key(recipe_.name, 1)), *decoder_);
  block.linears[5].sparse = random_sparse_part(block.linears[5], 0.1, 3);
  store_.commit(block_key(recipe_.name, 1), to_record(block));
  EXPECT_THAT(
      failure(out(), {.format = "gptq"}),
      HasSubstr("model.layers.1.mlp.up_proj is not what recipe rtn-w4g32 makes of a linear: "
                "4 bits, grid A-gptq, group size 32, with a sparse part"));
  EXPECT_THAT(listing(shared_.path()), ElementsAre("source"));
}

// What one rank lacks or cannot write, all must learn.
TEST_F(ExportTest, FailsOnAllRanksIfOneLacksABlock) {
  prepare();
  if (world_.rank() == world_.size() - 1) {
    for (int block = 0; block < 3; ++block) store_.remove(block_key(recipe_.name, block));
  }
  EXPECT_THAT(failure(out(), {.format = "gptq", .max_shard_bytes = 13000}),
              HasSubstr("not quantized yet"));
  EXPECT_THAT(listing(shared_.path()), ElementsAre("source"));
}

TEST_F(ExportTest, FailsOnAllRanksIfTheDirectoryCannotBeMade) {
  prepare();
  if (world_.rank() == 0) append(shared_.path() / "file", "x");
  world_.barrier();
  const std::string message = failure(shared_.path() / "file" / "out", {.format = "gptq"});
  EXPECT_THAT(message, HasSubstr("file/out"));
  EXPECT_THAT(message, testing::Not(HasSubstr("no failure")));
}

// A limit on the size of files stands for a full disk: the write ends short, and the rest is
// refused.
TEST_F(ExportTest, FailsOnAllRanksIfOneRanksDiskIsFull) {
  prepare();
  const ExportOptions options{.format = "dense", .max_shard_bytes = 40000};
  write(out(), options);
  const std::string before = read_text_file(out() / "SHA256SUMS");
  recipe_.schemes.front().bits = 4;

  const bool limited = world_.rank() == world_.size() - 1;
  rlimit usual{};
  getrlimit(RLIMIT_FSIZE, &usual);
  const auto usual_handler = std::signal(SIGXFSZ, SIG_IGN);
  if (limited) {
    const rlimit small{10000, usual.rlim_max};
    setrlimit(RLIMIT_FSIZE, &small);
  }
  const std::string message = failure(out(), options);
  setrlimit(RLIMIT_FSIZE, &usual);
  std::signal(SIGXFSZ, usual_handler);

  EXPECT_THAT(message, testing::Not(HasSubstr("no failure")));
  EXPECT_THAT(message, HasSubstr("model-0000"));
  EXPECT_THAT(listing(shared_.path()), ElementsAre("out", "source"));
  EXPECT_EQ(read_text_file(out() / "SHA256SUMS"), before);
  EXPECT_THAT(verify_checkpoint(out()), IsEmpty());
}

// A tokenizer that llama.cpp has, in place of the files that stand for one.
void write_tokenizer(const fs::path& directory) {
  fs::remove(directory / "tokenizer.model");
  nlohmann::ordered_json vocabulary = nlohmann::ordered_json::object();
  for (int i = 0; i < 26; ++i) vocabulary[std::string(1, static_cast<char>('a' + i))] = i;
  vocabulary["ab"] = 26;
  const nlohmann::ordered_json file = {
      {"added_tokens",
       {{{"id", 30}, {"content", "<s>"}, {"special", true}},
        {{"id", 31}, {"content", "<extra>"}, {"special", false}}}},
      {"normalizer", nullptr},
      {"pre_tokenizer",
       {{"type", "Sequence"},
        {"pretokenizers",
         {{{"type", "Digits"}, {"individual_digits", true}},
          {{"type", "ByteLevel"}, {"add_prefix_space", false}, {"use_regex", true}}}}}},
      {"model",
       {{"type", "BPE"},
        {"vocab", vocabulary},
        {"merges", nlohmann::ordered_json::array({"a b"})}}}};
  std::ofstream(directory / "tokenizer.json") << file.dump();
  std::ofstream(directory / "tokenizer_config.json")
      << R"({"bos_token": "<s>", "add_bos_token": true, "chat_template": "hello"})";
}

TEST_F(ExportTest, WhatWasWrittenIsReadBackAndComparedWithTheRun) {
  if (world_.rank() == 0) {
    write_mini_model(source(), {.dtype = DType::kBF16});
    write_tokenizer(source());
  }
  world_.barrier();
  model_ = std::make_unique<CausalLM>(source());
  decoder_ = make_decoder_block(model_->config(), 16, *backend_);
  recipe_ = rounding_recipe(4, 32);
  round_to_nearest(*model_, *decoder_, recipe_, *backend_, store_);
  const auto compared = [&](const ExportOptions& options) {
    return compare_export(*model_, *decoder_, recipe_, store_, options, out() / options.format,
                          world_, *monitor_)
        .value();
  };
  for (const char* format : {"compressed-tensors", "gptq", "awq", "auto_round", "gguf", "dense"}) {
    const ExportOptions options{.format = format, .max_shard_bytes = 30000};
    write(out() / format, options);
    EXPECT_THAT(compared(options), IsEmpty()) << format;
    // A byte of the last tensor of each file, before what pads it.
    std::vector<std::string> files = listing(out() / format);
    std::erase_if(files, [](const std::string& name) { return !name.starts_with("model-"); });
    std::erase_if(files, [](const std::string& name) { return name.ends_with(".json"); });
    world_.barrier();
    for (const std::string& file : files) {
      if (world_.rank() != 0) continue;
      std::fstream bytes(out() / format / file, std::ios::in | std::ios::out | std::ios::binary);
      bytes.seekg(-40, std::ios::end);
      const std::streamoff at = bytes.tellg();
      const char is = static_cast<char>(bytes.get() ^ 0x10);
      bytes.seekp(at);
      bytes.put(is);
    }
    world_.barrier();
    const std::vector<std::string> damaged = compared(options);
    if (world_.rank() == 0) {
      ASSERT_EQ(damaged.size(), files.size()) << format;
      for (const std::string& file : files)
        EXPECT_THAT(damaged, Contains(testing::StartsWith(file + ": tensor"))) << format;
    }
    world_.barrier();
    if (world_.rank() == 0) fs::remove(out() / format / files.front());
    world_.barrier();
    const std::vector<std::string> faults = compared(options);
    EXPECT_EQ(faults.empty(), world_.rank() != 0) << format;
    world_.barrier();
  }
  const std::string config = "gptq/config.json";
  write(out() / "gptq", {.format = "gptq"});
  if (world_.rank() == 0) {
    auto changed = nlohmann::ordered_json::parse(read_text_file(out() / config));
    changed["quantization_config"]["bits"] = 8;
    std::ofstream(out() / config) << changed.dump();
  }
  world_.barrier();
  const std::vector<std::string> faults = compared({.format = "gptq"});
  if (world_.rank() == 0) {
    EXPECT_THAT(faults, ElementsAre("config.json: does not describe what the run made"));
  }
  // Of another run, as far as the records go.
  recipe_ = rounding_recipe(4, 64);
  round_to_nearest(*model_, *decoder_, recipe_, *backend_, store_);
  const std::vector<std::string> other = compared({.format = "dense", .max_shard_bytes = 30000});
  if (world_.rank() == 0) {
    EXPECT_THAT(other, Contains(HasSubstr("self_attn.q_proj.weight: the weight of row 0")));
  }
}

TEST_F(ExportTest, GgufHoldsTheModelUnderOtherNames) {
  if (world_.rank() == 0) {
    write_mini_model(source(), {.blocks = 1, .dtype = DType::kF16});
    write_tokenizer(source());
  }
  world_.barrier();
  model_ = std::make_unique<CausalLM>(source());
  decoder_ = make_decoder_block(model_->config(), 16, *backend_);
  recipe_ = rounding_recipe(4, 32, Grid::kSymGptq);
  round_to_nearest(*model_, *decoder_, recipe_, *backend_, store_);
  const ExportOptions options{.format = "gguf"};
  write(out(), options);
  EXPECT_THAT(listing(out()), ElementsAre("SHA256SUMS", "generation_config.json", "model.gguf",
                                          "tokenizer.json", "tokenizer_config.json"));
  const GgufFile file(out() / "model.gguf");
  EXPECT_THAT(
      file.names(),
      ElementsAre("blk.0.attn_k.weight", "blk.0.attn_norm.weight", "blk.0.attn_output.weight",
                  "blk.0.attn_q.weight", "blk.0.attn_v.weight", "blk.0.ffn_down.weight",
                  "blk.0.ffn_gate.weight", "blk.0.ffn_norm.weight", "blk.0.ffn_up.weight",
                  "output.weight", "output_norm.weight", "token_embd.weight"));
  EXPECT_EQ(file.view("output_norm.weight").type, DType::kF32);
  EXPECT_EQ(file.view("token_embd.weight").type, DType::kF16);
  // Row i of a head of 32 is row i / 2 of its first or second half.
  const QuantizedBlock block =
      block_from_record(*store_.load(block_key(recipe_.name, 0)), *decoder_);
  const HostTensor plain = std::move(make_format("gguf")->fill(block.linears[0], DType::kF32)[0]);
  const HostView turned = file.view("blk.0.attn_q.weight");
  for (const auto& [row, from] :
       std::map<std::size_t, std::size_t>{{0, 0}, {1, 16}, {2, 1}, {33, 48}}) {
    EXPECT_TRUE(std::ranges::equal(turned.bytes.subspan(row * 36, 36),
                                   plain.bytes().subspan(from * 36, 36)))
        << row;
  }
  const std::string header(file.header());
  GgufKeys tokens;
  add_tokenizer_keys(source(), 48, tokens);
  EXPECT_NE(header.find(tokens.bytes()), header.npos);
  GgufKeys expected;
  expected.add("tokenizer.ggml.model", std::string_view("gpt2"));
  expected.add("tokenizer.ggml.pre", std::string_view("smollm"));
  std::vector<std::string> texts;
  for (char c = 'a'; c <= 'z'; ++c) texts.emplace_back(1, c);
  texts.insert(texts.end(), {"ab", "[PAD27]", "[PAD28]", "[PAD29]", "<s>", "<extra>"});
  for (int i = 32; i < 48; ++i) texts.push_back("[PAD" + std::to_string(i) + "]");
  std::vector<std::int32_t> types(48, 5);
  std::fill(types.begin(), types.begin() + 27, 1);
  types[30] = 3;
  types[31] = 4;
  expected.add("tokenizer.ggml.tokens", texts);
  expected.add("tokenizer.ggml.token_type", types);
  expected.add("tokenizer.ggml.merges", std::vector<std::string>{"a b"});
  expected.add("tokenizer.ggml.bos_token_id", std::uint32_t{30});
  EXPECT_NE(tokens.bytes().find(expected.bytes()), std::string::npos);
}

TEST_F(ExportTest, GgufRefusesWhatLlamaCppCannotBeTold) {
  if (world_.rank() != 0) return;
  write_mini_model(source(), {.blocks = 1});
  const auto refusal = [&](const std::string& file, const std::string& from,
                           const std::string& to) {
    write_mini_model(source(), {.blocks = 1});
    write_tokenizer(source());
    std::string text = read_text_file(source() / file);
    const std::size_t at = text.find(from);
    EXPECT_NE(at, text.npos) << from;
    text.replace(at, from.size(), to);
    std::ofstream(source() / file) << text;
    try {
      check_model_exportable(CausalLM(source()), rounding_recipe(4, 32), "gguf");
    } catch (const InputError& error) {
      return std::string(error.what());
    }
    return std::string();
  };
  EXPECT_EQ(refusal("config.json", "{", "{"), "");
  EXPECT_THAT(
      refusal("tokenizer.json", "true},{\"type\":\"ByteLevel", "false},{\"type\":\"ByteLevel"),
      HasSubstr("tokenizer.json: no pre-tokenizer of llama.cpp"));
  EXPECT_THAT(refusal("tokenizer.json", "\"id\":30", "\"id\":48"), HasSubstr("48"));
}

// Linear and yarn are keys, llama3 is a tensor of what each pair's frequency is divided by.
TEST_F(ExportTest, GgufSaysHowTheRotationIsScaled) {
  if (world_.size() > 1) GTEST_SKIP() << "one rank writes it";
  const auto write_scaled = [&](const std::string& scaling) {
    write_mini_model(source(), {.blocks = 1});
    write_tokenizer(source());
    std::string config = read_text_file(source() / "config.json");
    config.insert(config.find('{') + 1, "\"rope_scaling\": " + scaling + ",");
    std::ofstream(source() / "config.json") << config;
    model_ = std::make_unique<CausalLM>(source());
    decoder_ = make_decoder_block(model_->config(), 16, *backend_);
    recipe_ = rounding_recipe(4, 32, Grid::kSymGptq);
    round_to_nearest(*model_, *decoder_, recipe_, *backend_, store_);
    check_model_exportable(*model_, recipe_, "gguf");
    const ExportOptions options{.format = "gguf"};
    write(out(), options);
    EXPECT_THAT(
        compare_export(*model_, *decoder_, recipe_, store_, options, out(), world_, *monitor_)
            .value(),
        IsEmpty());
  };
  const auto holds = [&](GgufKeys keys) {
    const GgufFile file(out() / "model.gguf");
    return file.header().find(keys.bytes()) != file.header().npos;
  };
  write_scaled(R"({"rope_type": "linear", "factor": 4.0})");
  GgufKeys keys;
  keys.add("llama.rope.scaling.type", std::string_view("linear"));
  keys.add("llama.rope.scaling.factor", 4.0f);
  EXPECT_TRUE(holds(keys));
  EXPECT_FALSE(GgufFile(out() / "model.gguf").has("rope_freqs.weight"));

  write_scaled(R"({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16})");
  keys = {};
  keys.add("llama.rope.scaling.type", std::string_view("yarn"));
  keys.add("llama.rope.scaling.factor", 4.0f);
  keys.add("llama.rope.scaling.original_context_length", std::uint32_t{16});
  EXPECT_TRUE(holds(keys));
  EXPECT_THROW(
      write_scaled(
          R"({"rope_type": "yarn", "factor": 4.0, "beta_fast": 16, "original_max_position_embeddings": 16})"),
      InputError);

  write_scaled(R"({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
                   "high_freq_factor": 4.0, "original_max_position_embeddings": 32})");
  const GgufFile file(out() / "model.gguf");
  const HostView factors = file.view("rope_freqs.weight");
  ASSERT_EQ(factors.type, DType::kF32);
  ASSERT_EQ(factors.shape, (Shape{16}));
  std::vector<float> values(16);
  std::memcpy(values.data(), factors.bytes.data(), factors.bytes.size());
  // Pair 0 turns 32 / 2 pi = 5.09 times in 32 positions, which is more than 4; pair 1 10000^(-1/16) of it, 2.86 times: a third of the
  // way between 8 and 1 is (2.864 - 1) / 3 of the frequency that stays.
  EXPECT_EQ(values[0], 1.0f);
  const double turns = 32 * std::pow(10000.0, -1.0 / 16) / (2 * 3.14159265358979),
               share = (turns - 1) / 3;
  EXPECT_NEAR(values[1], 1 / ((1 - share) / 8 + share), 1e-5);
  EXPECT_EQ(values[15], 8.0f);
}

TEST_F(ExportTest, VerifyFindsWhatIsWrong) {
  prepare();
  write(out(), {.format = "gptq"});
  if (world_.rank() == 0) {
    {
      std::fstream file(out() / "model.safetensors",
                        std::ios::in | std::ios::out | std::ios::binary);
      file.seekg(20000);
      const char flipped = static_cast<char>(file.get() ^ 1);
      file.seekp(20000);
      file.put(flipped);
    }
    EXPECT_THAT(verify_checkpoint(out()), ElementsAre("model.safetensors: damaged"));
    fs::remove(out() / "tokenizer.model");
    append(out() / "notes.txt", "x");
    EXPECT_THAT(verify_checkpoint(out()),
                ElementsAre("model.safetensors: damaged", "notes.txt: not listed",
                            "tokenizer.model: missing"));

    const std::string sums = read_text_file(out() / "SHA256SUMS");
    for (const std::string line : {"nonsense", "0123  config.json", "", "../x"}) {
      write_text_atomically(out() / "SHA256SUMS", sums + line + "\n");
      EXPECT_THAT(verify_checkpoint(out()), Contains(HasSubstr("not a line of sha256sum"))) << line;
      EXPECT_THAT(verify_checkpoint(out()), Contains("model.safetensors: damaged"))
          << "it goes on after a malformed line";
    }
    write_text_atomically(out() / "SHA256SUMS", std::string(64, '0') + "  ../config.json\n");
    EXPECT_THAT(verify_checkpoint(out()), Contains("SHA256SUMS:1: not a line of sha256sum"));
    fs::remove(out() / "SHA256SUMS");
    EXPECT_THAT(verify_checkpoint(out()), ElementsAre("SHA256SUMS: missing"));
  }
  world_.barrier();
  EXPECT_THROW(write(out(), {.format = "gptq"}), InputError) << "it may be somebody's";
  write(out(), {.format = "gptq", .replace = true});
  if (world_.rank() == 0) {
    EXPECT_THAT(verify_checkpoint(out()), IsEmpty());
  }
  world_.barrier();
}

}  // namespace
}  // namespace roundhouse
