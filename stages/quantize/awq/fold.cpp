#include "stages/quantize/awq/fold.h"

#include <cmath>
#include <cstddef>
#include <optional>
#include <utility>

#include "base/dtype.h"
#include "base/error.h"

namespace roundhouse {
namespace {

// A dense tensor of the checkpoint, in F32 and with its own type to go back to. Its values count from `first` on, and have the offset
// added that the checkpoint's lack.
class Dense {
 public:
  Dense(const Checkpoint& checkpoint, const DecoderBlock& decoder, int block, std::string name,
        std::int64_t size, float offset, std::int64_t first = 0)
      : name_(std::move(name)),
        stored_(static_cast<std::size_t>(size)),
        offset_(offset),
        first_(static_cast<std::size_t>(first)) {
    const HostView view = checkpoint.weight(decoder.prefix(block) + "." + name_, {size});
    type_ = view.type;
    convert(type_, view.bytes.data(), DType::kF32, stored_.data(), stored_.size());
  }

  float operator[](std::size_t i) const { return with_offset(stored_[first_ + i]); }
  // A factor of 1 leaves the very bits.
  void divide(std::size_t i, float factor) {
    if (factor != 1.0f) stored_[first_ + i] = stored((*this)[i] / factor);
  }
  // As the checkpoint's type holds it.
  float rounded(float value) const { return with_offset(stored(value)); }
  void store(DenseTensors& into) const {
    HostTensor tensor(type_, {std::ssize(stored_)});
    convert(DType::kF32, stored_.data(), type_, tensor.bytes().data(), stored_.size());
    into[name_] = std::move(tensor);
  }

 private:
  // Without one the sign of a zero stays, too.
  float with_offset(float value) const { return offset_ == 0.0f ? value : offset_ + value; }
  float stored(float value) const {
    return rounded_to(type_, offset_ == 0.0f ? value : value - offset_);
  }

  std::string name_;
  std::vector<float> stored_;
  float offset_;
  std::size_t first_;
  DType type_ = DType::kF32;
};

bool keeps(float before, float after) {
  return std::isfinite(after) && (after != 0.0f || before == 0.0f);
}

}  // namespace

Folding fold(const Checkpoint& checkpoint, const DecoderBlock& decoder, int block,
             std::vector<ChosenScales>& chosen) {
  Folding folding;
  folding.column_factors.resize(decoder.linears().size());
  folding.row_divisors.resize(decoder.linears().size());
  for (std::size_t i = 0; i < chosen.size(); ++i) {
    const ScaleSet& set = decoder.scale_sets()[i];
    if (chosen[i].record.contains("skipped")) continue;
    std::vector<float>& s = chosen[i].s;
    const auto size = std::ssize(s);

    std::vector<Dense> dense;  // what is divided, a norm's weight first
    for (const int norm : set.norms) {
      const NormSpec& spec = decoder.norms()[norm];
      dense.emplace_back(checkpoint, decoder, block, spec.name, size, spec.offset);
    }
    std::int64_t rows_before = 0;  // of the linear before, that are not divided
    if (set.linear >= 0) {
      const LinearSpec& before = decoder.linears()[set.linear];
      rows_before = before.rows - size;
      require(rows_before >= 0, "a scale for each of the last rows of the linear before");
      const std::string bias = before.name + ".bias";
      if (checkpoint.has(decoder.prefix(block) + "." + bias)) {
        dense.emplace_back(checkpoint, decoder, block, bias, before.rows, 0.0f, rows_before);
      }
    }

    std::int64_t unscaled = 0;
    for (std::size_t k = 0; k < s.size(); ++k) {
      float factor = s[k];
      if (!set.norms.empty()) {
        const float weight = dense.front()[k], stored = dense.front().rounded(weight / factor);
        if (weight != 0.0f) factor = weight / stored;
      }
      bool ok = std::isfinite(factor) && factor > 0;
      for (const Dense& tensor : dense) {
        ok = ok && keeps(tensor[k], tensor.rounded(tensor[k] / factor));
      }
      if (!ok) {
        factor = 1.0f;
        ++unscaled;
      }
      for (Dense& tensor : dense) tensor.divide(k, factor);
      s[k] = factor;
    }
    if (unscaled > 0) chosen[i].record["unscaled_channels"] = unscaled;

    for (const Dense& tensor : dense) tensor.store(folding.replaced);
    for (const int linear : decoder.shared_inputs()[set.group].linears) {
      folding.column_factors[linear] = s;
    }
    if (set.linear >= 0) {
      std::vector<float>& divisors = folding.row_divisors[set.linear];
      divisors.assign(static_cast<std::size_t>(rows_before), 1.0f);
      divisors.insert(divisors.end(), s.begin(), s.end());
    }
  }
  return folding;
}

}  // namespace roundhouse
