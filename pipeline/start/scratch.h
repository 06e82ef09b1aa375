// Where activations go that memory has no room for.
#pragma once

#include <filesystem>

#include "pipeline/config/config.h"

namespace roundhouse {

// A folder on a disk of this node, as the batch system or the user names it: $SLURM_TMPDIR, then $TMPDIR, where it is there, may be
// written to, and is not itself in memory; else `otherwise`.
std::filesystem::path local_scratch(const std::filesystem::path& otherwise);
// memory.scratch, or such a folder.
std::filesystem::path scratch_folder(const RunConfig& config);

}  // namespace roundhouse
