// The contract of every device: memory and families of kernels. A stage is written once against this.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/activation_aware.h"
#include "kernels/gradients.h"
#include "kernels/learned_rounding.h"
#include "kernels/linear_algebra.h"
#include "kernels/lookup_table.h"
#include "kernels/memory.h"
#include "kernels/quantization.h"
#include "kernels/quantized_product.h"
#include "kernels/sensitivity.h"
#include "kernels/transformer.h"

namespace roundhouse {

class Backend : public Memory,
                public LinearAlgebra,
                public TransformerKernels,
                public GradientKernels,
                public QuantizationKernels,
                public ActivationAwareKernels,
                public LearnedRoundingKernels,
                public LookupTableKernels,
                public SensitivityKernels,
                public QuantizedProductKernels {
 public:
  virtual std::string description() const = 0;  // e.g. "CPU, 2 threads, AVX-512"
  // All that decides the last bits of a result besides our own version: the kind of device and the libraries that compute.
  // Two backends that say the same give the same bits. E.g. "CPU with AVX-512, oneDNN 2.6.3".
  virtual std::string computes_as() const = 0;
  // The clock by which work here is timed, in seconds: the host's, but of a device that only reckons what things would take.
  virtual double seconds() const;
};

struct BackendOptions {
  int threads = 0;  // CPU only; 0: as many as this process may run on
  // CPU only: large products of activations have BF16 factors (linear_algebra.h). InputError where the processor has no such products.
  bool bf16 = false;
  int device = 0;   // GPU only: which one
  int sharers = 1;  // ranks that take from the same memory, this one included
};

std::vector<std::string> built_backends();  // {"cpu"} or {"cpu", "cuda"}
bool has_device(std::string_view backend);  // a machine without a GPU: false for "cuda"

// The GPUs that this process may use, by their index for it: CUDA_VISIBLE_DEVICES, Slurm and containers may show each process
// others, or the same ones under other numbers. Asking neither makes a context nor takes memory on any.
struct VisibleGpus {
  std::vector<std::string>
      uuids;             // what tells a GPU, or an instance of one (MIG), from every other
  std::string why_none;  // where there are none
};
VisibleGpus visible_gpus();

std::unique_ptr<Backend> make_backend(std::string_view name,
                                      const BackendOptions& options);  // throws Error

}  // namespace roundhouse
