// The tensors of GPTQ, which several kinds of checkpoints have. Everything is transposed: outputs run along a row of the file.
//
//   qweight  I32 [cols bits / 32, rows]    column n: stream of the codes of inputs 0, 1, ... of output n
//   qzeros   I32 [groups, rows bits / 32]  row g: stream of the zero points of outputs 0, 1, ...
//   scales   F16 [groups, rows]
//   g_idx    I32 [cols]                    the group of each input, in the original order of inputs; not everywhere
//
// The first version of them stores zero point - 1, and kernels disagree on what 0 then becomes. Symmetric grids have 2^(bits-1)
// everywhere, which is safe; of asymmetric ones the zero points are stored as they are.
#pragma once

#include "stages/export/format.h"

namespace roundhouse {

class GptqTensors : public ExportFormat {
 public:
  bool has_scheme() const override { return true; }
  virtual bool has_groups() const = 0;  // g_idx

  void check_schemes(const Recipe& recipe) const override;
  void check_size(const Recipe& recipe, const LinearSpec& linear) const override;
  std::vector<TensorInfo> tensors(const ExportedLinear& linear, DType dtype) const override;
  std::vector<HostTensor> fill(const QuantizedLinear& linear, DType dtype) const override;
  void read(const ExportedLinear& linear, std::span<const HostView> stored, std::int64_t first,
            std::span<float> rows) const override;
};

// The first of those schemes that most linears have.
const LinearScheme& most_frequent(const std::vector<ExportedLinear>& linears);
// What readers take as a linear's settings.
nlohmann::ordered_json gptq_settings(const LinearScheme& scheme);

}  // namespace roundhouse
