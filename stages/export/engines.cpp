#include "stages/export/engines.h"

#include <algorithm>
#include <string_view>

#include <fmt/format.h>

#include "base/error.h"
#include "stages/export/format.h"

namespace roundhouse {
namespace {

// One engine's word on one format. An engine without a row for a format does not read it.
struct Served {
  const char* engine;
  const char* version;  // that this was found with
  const char* format;
  std::vector<int> symmetric;             // bits
  std::vector<int> asymmetric;            // bits
  std::vector<std::int64_t> group_sizes;  // besides the whole row; empty: any
  bool reordered;                         // act_order: dynamic
  bool head;          // a quantized lm_head; false: refused, or not known to load
  const char* found;  // how
};

constexpr const char* kLoaded = "loaded";        // validation/ loads such exports with it
constexpr const char* kRead = "read in source";  // it needs a GPU

constexpr std::string_view kDense = "dense";

const char* const kVllm = "vLLM 0.33.0";
const char* const kSglang = "SGLang 0.5.23";
const char* const kTransformers = "transformers 5.24.0";
const char* const kGptqModel = "GPTQModel 7.7.0";
const char* const kAutoAwq = "AutoAWQ 0.2.9";

const std::vector<Served>& table() {
  static const std::vector<int> all = {2, 3, 4, 8}, every = {2, 3, 4, 5, 6, 7, 8};
  static const std::vector<std::int64_t> marlin = {32, 64, 128};  // the kernels of vLLM and SGLang
  static const std::vector<std::int64_t> gptqmodel = {16, 32, 64, 128, 256, 512, 1024};
  static const std::vector<Served> rows = {
      {"vllm", kVllm, "compressed-tensors", every, every, marlin, false, true, kRead},
      {"vllm", kVllm, "gptq", {4, 8}, {}, marlin, false, true, kRead},
      {"vllm", kVllm, "awq", {4}, {4}, marlin, false, false, kRead},
      {"vllm", kVllm, "dense", every, every, {}, true, true, kRead},
      {"sglang", kSglang, "compressed-tensors", {4, 8}, {4}, marlin, false, true, kRead},
      {"sglang", kSglang, "gptq", {4, 8}, {}, marlin, true, true, kRead},
      {"sglang", kSglang, "awq", {4}, {4}, marlin, false, false, kRead},
      {"sglang", kSglang, "dense", every, every, {}, true, true, kRead},
      {"transformers", kTransformers, "compressed-tensors", all, {}, {}, false, false, kLoaded},
      {"transformers", kTransformers, "gptq", all, all, gptqmodel, true, false, kLoaded},
      {"transformers", kTransformers, "awq", {4}, {4}, gptqmodel, false, false, kLoaded},
      {"transformers", kTransformers, "auto_round", all, all, {}, false, false, kLoaded},
      {"transformers", kTransformers, "dense", every, every, {}, true, true, kLoaded},
      {"gptqmodel", kGptqModel, "gptq", all, all, gptqmodel, true, false, kLoaded},
      {"gptqmodel", kGptqModel, "awq", {4}, {4}, gptqmodel, false, false, kLoaded},
      {"autoawq", kAutoAwq, "awq", {4}, {4}, {}, false, false, kLoaded},
  };
  return rows;
}

bool contains(const auto& list, auto value) { return std::ranges::find(list, value) != list.end(); }

// "2, 3 and 4"
std::string listed(const auto& values) {
  std::string text;
  for (std::size_t i = 0; i < values.size(); ++i) {
    if (i > 0) text += i + 1 == values.size() ? " and " : ", ";
    text += std::to_string(values[i]);
  }
  return text;
}

std::string joined(const std::vector<std::string>& words) {
  std::string text;
  for (const std::string& word : words) text += (text.empty() ? "" : ", ") + word;
  return text;
}

std::string groups_text(const Served& row) {
  if (row.group_sizes.empty()) return "any";
  std::string text;
  for (const std::int64_t size : row.group_sizes) text += fmt::format("{}, ", size);
  return text.substr(0, text.size() - 2) + " or a row";
}

std::string takes(const Served& row) {
  std::string text = "symmetric grids of " + listed(row.symmetric) + " bits";
  if (row.asymmetric == row.symmetric) {
    text = "grids of " + listed(row.symmetric) + " bits";
  } else if (!row.asymmetric.empty()) {
    text += " and asymmetric ones of " + listed(row.asymmetric) + " bits";
  }
  return text + ", groups of " + (row.group_sizes.empty() ? "any size" : groups_text(row));
}

const Served* find_row(const std::string& engine, const std::string& format) {
  const auto found = std::ranges::find_if(
      table(), [&](const Served& row) { return row.engine == engine && row.format == format; });
  return found == table().end() ? nullptr : &*found;
}

// Why the engine would refuse such linears; empty: it would not.
std::string refusal(const Served& row, const LinearScheme& scheme) {
  if (scheme.kind == LinearScheme::Kind::kTable) return "lookup tables";
  if (scheme.sparse) return "sparse parts";
  const bool symmetric = is_symmetric(scheme.grid);
  if (!contains(symmetric ? row.symmetric : row.asymmetric, scheme.bits)) {
    return fmt::format("{} grid of {} bits", symmetric ? "a symmetric" : "an asymmetric",
                       scheme.bits);
  }
  if (scheme.group_size == -1) return "";  // one group a row: no order either
  if (!row.group_sizes.empty() && !contains(row.group_sizes, scheme.group_size)) {
    return fmt::format("groups of {}", scheme.group_size);
  }
  return scheme.reordered && !row.reordered ? "act_order: dynamic" : "";
}

std::string refusal(const Served& row, const Recipe& recipe) {
  if (row.format == kDense) return "";  // weights as any model has them
  if (!recipe.include.empty() && !row.head) return "a quantized head";
  // It does not read `dynamic`, where GPTQ's config has what differs.
  const bool mixed = std::ranges::any_of(recipe.schemes, [&](const LinearScheme& scheme) {
    const LinearScheme& first = recipe.schemes.front();
    return scheme.bits != first.bits || scheme.group_size != first.group_size ||
           scheme.grid != first.grid || scheme.reordered != first.reordered;
  });
  const bool skips = recipe.skips();
  if ((mixed || skips) && row.version == kTransformers && row.format == std::string_view("gptq"))
    return mixed ? "linears of different widths or groups" : "linears that are left as they are";
  // One matrix for q, k, v, and one for gate, up.
  const bool fuses = row.version == kVllm || row.version == kSglang;
  if ((mixed || skips) && fuses && !recipe.one_scheme_an_input)
    return "different widths of linears with a common input, which it fuses,";
  for (const LinearScheme& scheme : recipe.schemes) {
    if (std::string why = refusal(row, scheme); !why.empty()) return why;
  }
  return "";
}

bool is_held(const Recipe& recipe, const std::string& format) {
  try {
    const std::unique_ptr<ExportFormat> layout = make_format(format);
    layout->check_schemes(recipe);
    return std::ranges::all_of(recipe.include, [&](const std::string& linear) {
      return layout->cannot_hold(linear).empty();
    });
  } catch (const InputError&) {
    return false;
  }
}

bool is_served(const Recipe& recipe, const std::string& format,
               const std::vector<std::string>& engines) {
  return is_held(recipe, format) && std::ranges::all_of(engines, [&](const std::string& engine) {
           const Served* row = find_row(engine, format);
           return row != nullptr && refusal(*row, recipe).empty();
         });
}

// What can be done: other formats, or another grid, order or tie.
std::string instead(const Recipe& recipe, const std::string& format,
                    const std::vector<std::string>& engines) {
  std::vector<std::string> ways;
  for (const std::string& other : format_names()) {
    if (is_served(recipe, other, engines)) ways.push_back("the format '" + other + "'");
  }
  Recipe changed = recipe;
  for (LinearScheme& scheme : changed.schemes) scheme.grid = Grid::kSymGptq;
  if (is_served(changed, format, engines)) ways.emplace_back("symmetric: true in the recipe");
  changed = recipe;
  for (LinearScheme& scheme : changed.schemes) scheme.reordered = false;
  if (is_served(changed, format, engines)) ways.emplace_back("act_order: static in the recipe");
  changed = recipe;
  changed.one_scheme_an_input = true;
  if (is_served(changed, format, engines)) {
    ways.emplace_back(recipe.overrides.empty()
                          ? "tie: fused in the recipe"
                          : "overrides that are the same for q, k, v and for gate, up");
  }
  return ways.empty() ? "" : "; use " + joined(ways);
}

}  // namespace

std::vector<std::string> engine_names() {
  std::vector<std::string> names;
  for (const Served& row : table()) {
    if (!contains(names, row.engine)) names.emplace_back(row.engine);
  }
  return names;
}

void check_served(const Recipe& recipe, const std::string& format,
                  const std::vector<std::string>& engines) {
  for (const std::string& engine : engines) {
    const auto any =
        std::ranges::find_if(table(), [&](const Served& row) { return row.engine == engine; });
    if (any == table().end()) {
      throw InputError("unknown engine '" + engine + "' (there are " + joined(engine_names()) +
                       ")");
    }
    const Served* row = find_row(engine, format);
    const std::string why = row != nullptr ? refusal(*row, recipe) : "";
    if (row != nullptr && why.empty()) continue;
    throw InputError("recipe " + recipe.name + " as " + format + ": " + any->version +
                     (row != nullptr ? " refuses " + why + " there (it takes " + takes(*row) + ")"
                                     : std::string(" does not read this format")) +
                     instead(recipe, format, engines));
  }
}

void check_served(const Recipe& recipe, const DecoderBlock& decoder, int blocks,
                  const std::string& format, const std::vector<std::string>& engines) {
  Recipe here = recipe;
  here.one_scheme_an_input = one_scheme_an_input(recipe, decoder, blocks);
  check_served(here, format, engines);
}

std::vector<std::string> engine_table() {
  std::vector<std::string> lines;
  for (const Served& row : table()) {
    const auto bits = [](const std::vector<int>& widths) {
      return widths.empty() ? std::string("refused") : listed(widths);
    };
    lines.push_back("| " + std::string(row.version) + " | `" + row.format + "` | " +
                    bits(row.symmetric) + " | " + bits(row.asymmetric) + " | " + groups_text(row) +
                    " | " + (row.reordered ? "yes" : "-") + " | " + (row.head ? "yes" : "-") +
                    " | " + row.found + " |");
  }
  return lines;
}

}  // namespace roundhouse
