#include "tests/stages/export_world.h"

#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <numeric>

#include "base/error.h"
#include "base/file.h"
#include "base/random.h"
#include "model/checkpoint/safetensors.h"
#include "stages/store/block_record.h"

namespace roundhouse {
namespace {

namespace fs = std::filesystem;

constexpr std::int64_t kHeadDim = 32;
constexpr std::int64_t kVocabulary = 48;

// The columns of w (F32) in the order `columns`.
Tensor take_columns(const Tensor& w, const std::vector<std::int64_t>& columns, Backend& backend) {
  HostTensor from(DType::kF32, {w.rows(), w.cols()}), to(DType::kF32, {w.rows(), w.cols()});
  backend.download(w.f32(), from.bytes());
  const std::span<const float> in = from.as<float>();
  const std::span<float> out = to.as<float>();
  for (std::int64_t row = 0; row < w.rows(); ++row) {
    for (std::int64_t i = 0; i < w.cols(); ++i)
      out[row * w.cols() + i] = in[row * w.cols() + columns[i]];
  }
  Tensor taken = Tensor::upload(backend, to.view(), DType::kF32);
  backend.sync();
  return taken;
}

HostTensor on_host(const Tensor& weight, Backend& backend) {
  Tensor w(backend, DType::kF32, weight.rows(), weight.cols());
  backend.copy(weight.view(), w.view());
  HostTensor host(DType::kF32, {w.rows(), w.cols()});
  backend.download(w.f32(), host.bytes());
  return host;
}

// Each row's table holds its quantiles, and each code points to the nearest.
QuantizedLinear look_up(const LinearSpec& spec, const HostTensor& weights, int bits) {
  QuantizedLinear linear;
  linear.name = spec.name;
  linear.bits = bits;
  linear.rows = spec.rows;
  linear.cols = linear.group_size = spec.cols;
  linear.codes = HostTensor(DType::kU8, {spec.rows, spec.cols});
  const std::size_t cols = spec.cols, levels = std::size_t{1} << bits;
  linear.table = HostTensor(DType::kF16, {spec.rows, static_cast<std::int64_t>(levels)});
  for (std::size_t row = 0; row < static_cast<std::size_t>(spec.rows); ++row) {
    const std::span<const float> w = weights.as<float>().subspan(row * cols, cols);
    std::vector<float> sorted(w.begin(), w.end()), table(levels);
    std::ranges::sort(sorted);
    for (std::size_t level = 0; level < levels; ++level) {
      const std::uint16_t value = float_to_half(sorted[(2 * level + 1) * cols / (2 * levels)]);
      linear.table.as<std::uint16_t>()[row * levels + level] = value;
      table[level] = half_to_float(value);
    }
    for (std::size_t col = 0; col < cols; ++col) {
      const auto nearest = std::ranges::min_element(
          table, {}, [&](float value) { return std::abs(value - w[col]); });
      linear.codes.as<std::uint8_t>()[row * cols + col] =
          static_cast<std::uint8_t>(nearest - table.begin());
    }
  }
  return linear;
}

// Of weights beyond two and a half standard deviations: what the codes miss.
SparsePart outliers_of(const QuantizedLinear& linear, const HostTensor& weights) {
  const std::span<const float> all = weights.as<float>();
  double squares = 0;
  for (const float w : all) squares += w * w;
  const double limit = 2.5 * std::sqrt(squares / static_cast<double>(all.size()));
  std::vector<std::int32_t> columns;
  std::vector<std::uint16_t> values;
  SparsePart sparse;
  sparse.offsets = HostTensor(DType::kI32, {linear.rows + 1});
  DequantizedRows rows(linear);
  for (std::int64_t row = 0; row < linear.rows; ++row) {
    const std::span<const float> dense = rows.values(row);
    for (std::int64_t col = 0; col < linear.cols; ++col) {
      const float w = all[row * linear.cols + col];
      if (std::abs(w) <= limit) continue;
      columns.push_back(static_cast<std::int32_t>(col));
      values.push_back(float_to_half(w - dense[col]));
    }
    sparse.offsets.as<std::int32_t>()[row + 1] = static_cast<std::int32_t>(columns.size());
  }
  const auto entries = static_cast<std::int64_t>(columns.size());
  sparse.columns = HostTensor(DType::kI32, {entries});
  sparse.values = HostTensor(DType::kF16, {entries});
  std::ranges::copy(columns, sparse.columns.as<std::int32_t>().begin());
  std::ranges::copy(values, sparse.values.as<std::uint16_t>().begin());
  return sparse;
}

QuantizedLinear round_linear(const LinearSpec& spec, const Tensor& weight,
                             const LinearScheme& scheme, std::uint64_t seed, Backend& backend) {
  QuantizedLinear linear;
  linear.name = spec.name;
  linear.bits = scheme.bits;
  linear.grid = scheme.grid;
  linear.rows = spec.rows;
  linear.cols = spec.cols;
  linear.group_size = scheme.group_size_for(spec.cols);

  std::vector<std::int64_t> order(spec.cols);
  std::iota(order.begin(), order.end(), 0);
  const bool reordered = scheme.reordered;
  if (reordered) Random(seed).shuffle(order);

  Tensor w32(backend, DType::kF32, spec.rows, spec.cols);
  backend.copy(weight.view(), w32.view());
  const Tensor w = take_columns(w32, order, backend);
  Tensor scales(backend, DType::kF32, spec.rows, linear.groups());
  Tensor zeros(backend, DType::kU8, spec.rows, linear.groups());
  Tensor codes(backend, DType::kU8, spec.rows, spec.cols);
  backend.find_grid({.w = w.view(),
                     .group_size = linear.group_size,
                     .grid = scheme.grid,
                     .bits = scheme.bits,
                     .clip = {},
                     .scales = scales.view(),
                     .zeros = zeros.view()});
  backend.round_to_grid({.w = w.view(),
                         .group_size = linear.group_size,
                         .bits = scheme.bits,
                         .scales = scales.view(),
                         .zeros = zeros.view(),
                         .codes = codes.view()});

  HostTensor scales32(DType::kF32, {spec.rows, linear.groups()});
  HostTensor ordered_codes(DType::kU8, {spec.rows, spec.cols});
  linear.codes = ordered_codes;
  linear.scales = HostTensor(DType::kF16, scales32.shape());
  linear.zeros = HostTensor(DType::kU8, scales32.shape());
  backend.download(scales.f32(), scales32.bytes());
  backend.download(zeros.view().data, linear.zeros.bytes());
  backend.download(codes.view().data, ordered_codes.bytes());
  convert(DType::kF32, scales32.bytes().data(), DType::kF16, linear.scales.bytes().data(),
          static_cast<std::size_t>(scales32.count()));
  const std::span<const std::uint8_t> in = ordered_codes.as<std::uint8_t>();
  const std::span<std::uint8_t> out = linear.codes.as<std::uint8_t>();
  for (std::int64_t row = 0; row < spec.rows; ++row) {
    for (std::int64_t i = 0; i < spec.cols; ++i)
      out[row * spec.cols + order[i]] = in[row * spec.cols + i];
  }
  if (reordered) {
    linear.group_of_column = HostTensor(DType::kI32, {spec.cols});
    const std::span<std::int32_t> group_of = linear.group_of_column.as<std::int32_t>();
    for (std::int64_t i = 0; i < spec.cols; ++i) {
      group_of[order[i]] = static_cast<std::int32_t>(i / linear.group_size);
    }
  }
  return linear;
}

// Linears that share an input have the same scheme, as engines fuse them; blocks begin with another one each.
const LinearScheme& scheme_for(const Recipe& recipe, const DecoderBlock& decoder, int block,
                               int linear) {
  std::size_t at = static_cast<std::size_t>(block);
  for (const SharedInput& group : decoder.shared_inputs()) {
    if (std::ranges::find(group.linears, linear) != group.linears.end()) break;
    ++at;
  }
  return recipe.schemes[at % recipe.schemes.size()];
}

}  // namespace

void write_mini_model(const fs::path& directory, const MiniModel& options) {
  const std::int64_t hidden = options.hidden_size, kv = hidden / 2,
                     inner = options.intermediate_size;
  // An order of keys that no sorting gives.
  const nlohmann::ordered_json config = {
      {"model_type", "llama"},
      {"architectures", nlohmann::ordered_json::array({"LlamaForCausalLM"})},
      {"vocab_size", kVocabulary},
      {"hidden_size", hidden},
      {"intermediate_size", inner},
      {"num_hidden_layers", options.blocks},
      {"num_attention_heads", hidden / kHeadDim},
      {"num_key_value_heads", hidden / kHeadDim / 2},
      {"max_position_embeddings", 64},
      {"rms_norm_eps", 1e-5},
      {"hidden_act", "silu"},
      {"tie_word_embeddings", options.tied},
      {"torch_dtype", torch_name_of(options.dtype)},
      {"bos_token_id", 1},
      {"eos_token_id", 2},
      {"a_key_of_somebody", {{"z", 1}, {"a", 2.5}}}};
  fs::create_directories(directory);
  write_text_atomically(directory / "config.json", config.dump(2));
  write_text_atomically(directory / "generation_config.json", "{\"eos_token_id\": 2}");
  write_text_atomically(directory / "tokenizer.model", std::string("not \0 text \xff", 12));
  write_text_atomically(directory / "tokenizer_config.json", "{ }\n");

  std::vector<TensorInfo> tensors;
  const auto add = [&](const std::string& name, Shape shape) {
    tensors.push_back({name, options.dtype, std::move(shape)});
  };
  add("model.embed_tokens.weight", {kVocabulary, hidden});
  for (int block = 0; block < options.blocks; ++block) {
    const std::string prefix = "model.layers." + std::to_string(block) + ".";
    add(prefix + "self_attn.q_proj.weight", {hidden, hidden});
    add(prefix + "self_attn.k_proj.weight", {kv, hidden});
    add(prefix + "self_attn.v_proj.weight", {kv, hidden});
    add(prefix + "self_attn.o_proj.weight", {hidden, hidden});
    add(prefix + "mlp.gate_proj.weight", {inner, hidden});
    add(prefix + "mlp.up_proj.weight", {inner, hidden});
    add(prefix + "mlp.down_proj.weight", {hidden, inner});
    add(prefix + "input_layernorm.weight", {hidden});
    add(prefix + "post_attention_layernorm.weight", {hidden});
  }
  add("model.norm.weight", {hidden});
  if (!options.tied) add("lm_head.weight", {kVocabulary, hidden});

  const std::string last_norm =
      "model.layers." + std::to_string(options.blocks - 1) + ".input_layernorm.weight";
  Random random(7);
  SafetensorsWriter writer(directory / "model.safetensors", tensors, {{"format", "pt"}});
  for (const TensorInfo& tensor : tensors) {
    HostTensor values(DType::kF32, tensor.shape), stored(tensor.type, tensor.shape);
    for (float& value : values.as<float>()) value = 0.1f * static_cast<float>(random.normal());
    if (tensor.name == last_norm) std::ranges::fill(values.as<float>(), options.norm_value);
    convert(DType::kF32, values.bytes().data(), tensor.type, stored.bytes().data(),
            static_cast<std::size_t>(values.count()));
    writer.write(tensor.name, stored.bytes());
  }
  writer.close();
}

void write_shortened_model(const fs::path& from, int blocks, const fs::path& to) {
  auto config = nlohmann::ordered_json::parse(read_text_file(from / "config.json"));
  config["num_hidden_layers"] = blocks;
  write_text_atomically(to / "config.json", config.dump(1));
  for (const fs::directory_entry& entry : fs::directory_iterator(from)) {
    const fs::path name = entry.path().filename();
    if (entry.is_regular_file() && name != "config.json")
      fs::create_symlink(fs::absolute(entry.path()), to / name);
  }
}

Recipe rounding_recipe(int bits, std::int64_t group_size, Grid grid, bool reordered) {
  Recipe recipe;
  recipe.method = "rtn";
  recipe.name =
      "rtn-w" + std::to_string(bits) + (group_size == -1 ? "" : "g" + std::to_string(group_size));
  recipe.options = nlohmann::json::object();
  recipe.schemes = {{.bits = bits, .group_size = group_size, .grid = grid, .reordered = reordered}};
  return recipe;
}

QuantizedLinear random_linear(const std::string& name, std::int64_t rows, std::int64_t cols,
                              int bits, std::int64_t group_size, Grid grid, std::uint64_t seed) {
  Random random(seed);
  QuantizedLinear linear;
  linear.name = name;
  linear.bits = bits;
  linear.grid = grid;
  linear.rows = rows;
  linear.cols = cols;
  linear.group_size = group_size == -1 ? cols : group_size;
  linear.codes = HostTensor(DType::kU8, {rows, cols});
  linear.scales = HostTensor(DType::kF16, {rows, linear.groups()});
  linear.zeros = HostTensor(DType::kU8, {rows, linear.groups()});
  const std::uint64_t levels = std::uint64_t{1} << bits;
  for (std::uint8_t& code : linear.codes.as<std::uint8_t>())
    code = static_cast<std::uint8_t>(random.below(levels));
  for (std::uint8_t& zero : linear.zeros.as<std::uint8_t>()) {
    zero = static_cast<std::uint8_t>(is_symmetric(grid) ? levels / 2 : random.below(levels));
  }
  for (std::uint16_t& scale : linear.scales.as<std::uint16_t>()) {
    const float sign = grid == Grid::kSymFull && random.below(2) == 1 ? -1.0f : 1.0f;
    scale = float_to_half(sign * static_cast<float>(0.001 + random.uniform()));
  }
  return linear;
}

QuantizedLinear random_table_linear(const std::string& name, std::int64_t rows, std::int64_t cols,
                                    int bits, std::uint64_t seed) {
  QuantizedLinear linear = random_linear(name, rows, cols, bits, -1, Grid::kAsymGptq, seed);
  linear.scales = linear.zeros = {};
  linear.table = HostTensor(DType::kF16, {rows, std::int64_t{1} << bits});
  Random random(seed + 1);
  for (std::uint16_t& value : linear.table.as<std::uint16_t>())
    value = float_to_half(static_cast<float>(random.normal()));
  return linear;
}

SparsePart random_sparse_part(const QuantizedLinear& linear, double density, std::uint64_t seed) {
  Random random(seed);
  std::vector<std::int32_t> columns;
  SparsePart sparse;
  sparse.offsets = HostTensor(DType::kI32, {linear.rows + 1});
  for (std::int64_t row = 0; row < linear.rows; ++row) {
    for (std::int64_t col = 0; col < linear.cols; ++col) {
      if (random.uniform() < density) columns.push_back(static_cast<std::int32_t>(col));
    }
    sparse.offsets.as<std::int32_t>()[row + 1] = static_cast<std::int32_t>(columns.size());
  }
  const auto entries = static_cast<std::int64_t>(columns.size());
  sparse.columns = HostTensor(DType::kI32, {entries});
  sparse.values = HostTensor(DType::kF16, {entries});
  std::ranges::copy(columns, sparse.columns.as<std::int32_t>().begin());
  for (std::uint16_t& value : sparse.values.as<std::uint16_t>())
    value = float_to_half(static_cast<float>(5 * random.normal()));
  return sparse;
}

void round_to_nearest(const CausalLM& model, const DecoderBlock& decoder, const Recipe& recipe,
                      Backend& backend, RunStore& store) {
  const ModelUnits units(decoder, static_cast<int>(model.config().blocks), recipe.include);
  for (int block = 0; block < units.count(); ++block) {
    const DecoderBlock& of_unit = units.of(block);
    const BlockWeights weights = of_unit.load(model.checkpoint(), block, backend);
    QuantizedBlock quantized;
    quantized.block = block;
    quantized.record = nlohmann::json::object();
    for (std::size_t i = 0; i < of_unit.linears().size(); ++i) {
      const LinearSpec& spec = of_unit.linears()[i];
      const LinearScheme& scheme = scheme_for(recipe, of_unit, block, static_cast<int>(i));
      const HostTensor w = on_host(weights.linears[i], backend);
      QuantizedLinear linear =
          scheme.kind == LinearScheme::Kind::kTable
              ? look_up(spec, w, scheme.bits)
              : round_linear(spec, weights.linears[i], scheme,
                             static_cast<std::uint64_t>(block) * 100 + i, backend);
      if (scheme.sparse) linear.sparse = outliers_of(linear, w);
      linear.record = {{"method", recipe.method}};
      quantized.linears.push_back(std::move(linear));
    }
    store.commit(block_key(recipe.name, block), to_record(quantized));
  }
}

}  // namespace roundhouse
