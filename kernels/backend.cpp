// The one place that knows which devices were built.
#include "kernels/backend.h"

#include <chrono>

#include "base/error.h"
#include "kernels/cpu/cpu_backend.h"
#if ROUNDHOUSE_CUDA
#include "kernels/cuda/cuda_backend.h"
#endif

namespace roundhouse {

double Backend::seconds() const {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

std::vector<std::string> built_backends() {
#if ROUNDHOUSE_CUDA
  return {"cpu", "cuda"};
#else
  return {"cpu"};
#endif
}

bool has_device(std::string_view backend) {
  return backend == "cpu" || (backend == "cuda" && !visible_gpus().uuids.empty());
}

VisibleGpus visible_gpus() {
#if ROUNDHOUSE_CUDA
  return visible_cuda_devices();
#else
  return {.uuids = {}, .why_none = "this program was built without CUDA"};
#endif
}

std::unique_ptr<Backend> make_backend(std::string_view name, const BackendOptions& options) {
  if (name == "cpu") return std::make_unique<CpuBackend>(options);
#if ROUNDHOUSE_CUDA
  if (name == "cuda") return make_cuda_backend(options);
#else
  if (name == "cuda") throw Error(visible_gpus().why_none);
#endif
  throw Error("there is no backend named \"" + std::string(name) + "\"");
}

}  // namespace roundhouse
