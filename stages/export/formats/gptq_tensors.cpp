#include "stages/export/formats/gptq_tensors.h"

#include <algorithm>

#include <fmt/format.h>

#include "model/quantized/bitstream.h"
#include "stages/export/stored.h"
#include "stages/export/transposed.h"

namespace roundhouse {
namespace {

void pack_zeros(const QuantizedLinear& linear, HostTensor& packed) {
  const auto rows = static_cast<std::size_t>(linear.rows);
  const auto groups = static_cast<std::size_t>(linear.groups());
  const std::size_t words = packed_words(rows, linear.bits);
  std::vector<std::uint8_t> stored(linear.zeros.as<std::uint8_t>().begin(),
                                   linear.zeros.as<std::uint8_t>().end());
  if (is_symmetric(linear.grid)) {
    for (std::uint8_t& zero : stored) --zero;
  }
  const std::span<std::uint32_t> out = packed.as<std::uint32_t>();
  for (std::size_t group = 0; group < groups; ++group)
    pack_bits(stored.data() + group, rows, groups, linear.bits, out.data() + group * words);
}

}  // namespace

const LinearScheme& most_frequent(const std::vector<ExportedLinear>& linears) {
  const auto count = [&](const ExportedLinear& linear) {
    return std::ranges::count(linears, linear.scheme, &ExportedLinear::scheme);
  };
  return std::ranges::max_element(linears, {}, count)->scheme;
}

nlohmann::ordered_json gptq_settings(const LinearScheme& scheme) {
  return {{"bits", scheme.bits}, {"group_size", scheme.group_size}, {"desc_act", scheme.reordered}};
}

void GptqTensors::check_schemes(const Recipe& recipe) const {
  check_packable_grids(name(), recipe, {2, 3, 4, 8});
  const bool symmetric = is_symmetric(recipe.schemes.front().grid);
  if (std::ranges::any_of(recipe.schemes, [&](const LinearScheme& scheme) {
        return is_symmetric(scheme.grid) != symmetric;
      })) {
    throw not_exportable(name(), recipe,
                         "some linears have symmetric grids and some asymmetric ones, for which it "
                         "has two versions; use the format 'compressed-tensors' or 'dense'");
  }
  if (!has_groups() && std::ranges::any_of(recipe.schemes, &LinearScheme::reordered)) {
    throw not_exportable(name(), recipe,
                         "with act_order: dynamic a column's group is not its place, which it has "
                         "no table for; use act_order: static, or the format 'gptq' or 'dense'",
                         "act_order");
  }
}

void GptqTensors::check_size(const Recipe& recipe, const LinearSpec& linear) const {
  check_packable_size(name(), recipe, linear);
}

std::vector<TensorInfo> GptqTensors::tensors(const ExportedLinear& linear, DType) const {
  const std::int64_t rows = linear.spec.rows, cols = linear.spec.cols;
  const int bits = linear.scheme.bits;
  std::vector<TensorInfo> tensors = {{"qweight", DType::kI32, {cols * bits / 32, rows}},
                                     {"qzeros", DType::kI32, {linear.groups(), rows * bits / 32}},
                                     {"scales", DType::kF16, {linear.groups(), rows}}};
  if (has_groups()) tensors.push_back({"g_idx", DType::kI32, {cols}});
  return tensors;
}

std::vector<HostTensor> GptqTensors::fill(const QuantizedLinear& linear, DType dtype) const {
  std::vector<HostTensor> filled = empty_tensors(*this, linear, dtype);
  pack_transposed(linear, filled[0]);
  pack_zeros(linear, filled[1]);
  transpose_scales(linear, filled[2]);
  if (!has_groups()) return filled;
  const std::span<std::int32_t> group_of = filled[3].as<std::int32_t>();
  if (linear.group_of_column.count() > 0) {
    std::ranges::copy(linear.group_of_column.as<std::int32_t>(), group_of.begin());
  } else {
    for (std::size_t col = 0; col < group_of.size(); ++col) {
      group_of[col] = static_cast<std::int32_t>(static_cast<std::int64_t>(col) / linear.group_size);
    }
  }
  return filled;
}

void GptqTensors::read(const ExportedLinear& linear, std::span<const HostView> stored,
                       std::int64_t first, std::span<float> rows) const {
  const int bits = linear.scheme.bits, levels = 1 << bits;
  const std::int64_t cols = linear.spec.cols, outputs = linear.spec.rows;
  const std::int64_t groups = linear.groups(), size = cols / groups;
  const std::int64_t words = stored[1].shape[1];
  const int less = is_symmetric(linear.scheme.grid) ? 1 : 0;
  for (std::size_t i = 0; i < rows.size(); ++i) {
    const std::int64_t row = first + static_cast<std::int64_t>(i) / cols;
    const std::int64_t col = static_cast<std::int64_t>(i) % cols;
    std::int64_t group = col / size;
    if (has_groups()) group = stored_at<std::int32_t>(stored[3], col);
    if (group < 0 || group >= groups)
      throw Error(fmt::format("g_idx: column {} is in group {} of {}", col, group, groups));
    const int code = stored_field(stored[0], row, outputs, col, bits);
    const int zero = (stored_field(stored[1], group * words, 1, row, bits) + less) % levels;
    rows[i] = stored_half(stored[2], group * outputs + row) * static_cast<float>(code - zero);
  }
}

}  // namespace roundhouse
