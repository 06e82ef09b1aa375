#include "stages/export/format.h"

#include <algorithm>
#include <array>
#include <cmath>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "base/quote.h"
#include "stages/export/container.h"

namespace roundhouse {
namespace {

struct Entry {
  const char* name;
  std::unique_ptr<ExportFormat> (*make)();
};

constexpr std::array kFormats = {
    Entry{"compressed-tensors", make_compressed_tensors},
    Entry{"gptq", make_gptq},
    Entry{"awq", make_awq_gemm},
    Entry{"auto_round", make_auto_round},
    Entry{"gguf", make_gguf},
    Entry{"squeezellm", make_squeezellm},
    Entry{"dense", make_dense},
};

// Readers pack and tile both sides of a weight by 32.
constexpr std::int64_t kTile = 32;

}  // namespace

std::unique_ptr<Container> ExportFormat::container(const ExportedModel& exported) const {
  return make_safetensors_container(exported);
}

std::string ExportFormat::cannot_hold(const std::string& outer_linear) const {
  return "it has no place for a quantized " + outer_linear + "; " +
         (outer_linear == kOuterLinears.back()
              ? "the formats 'compressed-tensors', 'gptq', 'gguf' and 'dense' have"
              : "the formats 'gguf' and 'dense' have");
}

std::vector<std::string> format_names() {
  std::vector<std::string> names;
  for (const Entry& entry : kFormats) names.emplace_back(entry.name);
  return names;
}

std::unique_ptr<ExportFormat> make_format(const std::string& name) {
  std::string known;
  for (const Entry& entry : kFormats) {
    if (name == entry.name) return entry.make();
    known += (known.empty() ? "" : ", ") + std::string(entry.name);
  }
  throw InputError("unknown export format " + in_quotes(name) + " (there are " + known + ")");
}

InputError not_exportable(const std::string& format, const Recipe& recipe, const std::string& why,
                          const std::string& key) {
  const auto place = recipe.where.find(recipe.where.contains(key) ? key : "");
  return InputError((place == recipe.where.end() ? "" : place->second + ": ") + "recipe " +
                    recipe.name + " cannot be exported as " + format + ": " + why);
}

std::string key_of(const Recipe& recipe, const LinearScheme& scheme, const std::string& key) {
  const auto asks = [&](const LinearOverride& each) { return each.scheme == scheme; };
  return std::ranges::any_of(recipe.overrides, asks) ? "overrides" : key;
}

std::vector<HostTensor> empty_tensors(const ExportFormat& format, const QuantizedLinear& linear,
                                      DType dtype) {
  const ExportedLinear exported{.module = linear.name,
                                .spec = {linear.name, linear.rows, linear.cols},
                                .scheme = scheme_of(linear),
                                .sparse_entries = linear.sparse.entries()};
  std::vector<HostTensor> tensors;
  for (const TensorInfo& info : format.tensors(exported, dtype))
    tensors.emplace_back(info.type, info.shape);
  return tensors;
}

void check_uniform_grids(const std::string& format, const Recipe& recipe) {
  for (const LinearScheme& scheme : recipe.schemes) {
    if (scheme.kind == LinearScheme::Kind::kTable) {
      throw not_exportable(
          format, recipe,
          "each row has a lookup table of its own, and it holds uniform grids only; the formats "
          "'squeezellm' and 'dense' can hold it");
    }
    if (scheme.sparse) {
      throw not_exportable(
          format, recipe,
          "some weights stand apart in a sparse part, which it has no place for; leave that out "
          "(outliers: 0), or use the format 'dense'",
          "outliers");
    }
  }
}

void check_packable_grids(const std::string& format, const Recipe& recipe,
                          const std::vector<int>& bits) {
  require(!recipe.schemes.empty(), "a recipe says what its linears become");
  check_uniform_grids(format, recipe);
  const auto refuse = [&](const std::string& why, const std::string& key = "") {
    throw not_exportable(format, recipe, why, key);
  };
  for (const LinearScheme& scheme : recipe.schemes) {
    if (std::ranges::find(bits, scheme.bits) == bits.end()) {
      refuse(fmt::format("codes of {} bits, and it packs {} or {}; {} can hold it", scheme.bits,
                         fmt::join(bits.begin(), bits.end() - 1, ", "), bits.back(),
                         scheme.bits >= 2 && scheme.bits <= 8
                             ? "the formats 'compressed-tensors' and 'dense'"
                             : "the format 'dense'"),
             key_of(recipe, scheme, "bits"));
    }
  }
}

void check_packable_size(const std::string& format, const Recipe& recipe,
                         const LinearSpec& linear) {
  const auto refuse = [&](const std::string& why, const std::string& key = "") {
    throw not_exportable(format, recipe,
                         linear.name + " " + why + "; the format 'dense' can hold it", key);
  };
  if (linear.rows % kTile != 0 || linear.cols % kTile != 0) {
    refuse(fmt::format("is {} x {}, and its readers want multiples of {}", linear.rows, linear.cols,
                       kTile));
  }
  for (const LinearScheme& scheme : recipe.schemes) {
    if (scheme.group_size == -1) continue;
    if (scheme.group_size < 1 || linear.cols % scheme.group_size != 0) {
      refuse(fmt::format("has {} columns, which are not a multiple of the group size {}",
                         linear.cols, scheme.group_size),
             key_of(recipe, scheme, "group_size"));
    }
  }
}

void convert_finite(const std::string& tensor, DType from_type, const void* from, DType to_type,
                    void* to, std::size_t n) {
  if (to_type == DType::kF32 || from_type == to_type) {
    convert(from_type, from, to_type, to, n);
    return;
  }
  // Bits of an infinity, but for the sign.
  const std::uint16_t infinity = to_type == DType::kF16 ? 0x7c00 : 0x7f80;
  constexpr std::size_t kPiece = 4096;
  std::array<float, kPiece> values;
  const auto* in = static_cast<const std::byte*>(from);
  auto* out = static_cast<std::uint16_t*>(to);
  for (std::size_t done = 0; done < n; done += kPiece) {
    const std::size_t count = std::min(kPiece, n - done);
    convert(from_type, in + done * size_of(from_type), DType::kF32, values.data(), count);
    convert(DType::kF32, values.data(), to_type, out + done, count);
    for (std::size_t i = 0; i < count; ++i) {
      if ((out[done + i] & 0x7fff) == infinity && std::isfinite(values[i])) {
        throw Error(
            fmt::format("{}: {:f} is too large for {}; set export.dtype to a type that holds it",
                        tensor, values[i], torch_name_of(to_type)));
      }
    }
  }
}

}  // namespace roundhouse
