// Rows of a linear are solved in tiles of a fixed height; ranks own tiles, they do not size them.
#pragma once

#include <functional>

#include "comm/communicator.h"
#include "kernels/backend.h"
#include "model/decoder_block.h"
#include "model/quantized_linear.h"

namespace roundhouse {

inline constexpr std::int64_t kTileRows = 256;

// What one tile's solver fills: rows [first, first + rows) of codes, scales and zeros, in host memory.
struct TileResult {
  HostTensor codes;   // U8 [rows, cols]
  HostTensor scales;  // F16 [rows, groups]
  HostTensor zeros;   // U8 [rows, groups]
  double error = 0;   // summed over tiles in tile order
};

// Cuts [0, linear.rows) into tiles, solves those of this rank (tile t belongs to rank t % team.size()), and gathers codes,
// scales, zeros and the error on every rank of the team. Collective.
void solve_in_tiles(Communicator& team, QuantizedLinear& linear, double& error,
                    const std::function<TileResult(std::int64_t first, std::int64_t rows)>& solve);

}  // namespace roundhouse
