#include "pipeline/version.h"

#include <algorithm>

#include <fmt/format.h>
#include <roundhouse_commit.h>  // made at each build

#include "kernels/backend.h"

namespace roundhouse {

std::string version_number() { return ROUNDHOUSE_VERSION; }

std::string version_commit() { return ROUNDHOUSE_COMMIT; }

std::string version_line() {
  const bool cuda = std::ranges::count(built_backends(), "cuda") > 0;
  return fmt::format("roundhouse {} (commit {}, {}, {} CUDA)", version_number(), version_commit(),
                     ROUNDHOUSE_BUILD_KIND, cuda ? "with" : "without");
}

}  // namespace roundhouse
