// Rows of a linear are solved in tiles of a fixed height; ranks own tiles, they do not size them.
#pragma once

#include <functional>
#include <vector>

#include "comm/communicator.h"
#include "kernels/backend.h"
#include "model/block/decoder_block.h"
#include "model/quantized/linear_scheme.h"
#include "model/quantized/quantized_linear.h"
#include "stages/flow/block_sum.h"

namespace roundhouse {

// How far a solution is from the original, and the same measure of the original itself (what the error is relative to). The
// method says what it measures. Summed over tiles in tile order.
struct SolveError {
  double error = 0;
  double norm = 0;
  std::int64_t rounded_rows = 0;  // to nearest, where the method would have done worse than zeros
};

// What one tile's solver fills: rows [first, first + rows) of codes, scales and zeros, in host memory.
struct TileResult {
  HostTensor codes;   // U8 [rows, cols]
  HostTensor scales;  // F16 [rows, groups]
  HostTensor zeros;   // U8 [rows, groups]
  SolveError error;
};

// From the backend's memory to the host: codes U8 [rows, cols] and scales F32, zeros U8 [rows, groups]; the errors and norms of the
// rows, F32 [rows, 1], are summed.
TileResult download_tile(const Tensor& codes, const Tensor& scales, const Tensor& zeros,
                         const Tensor& row_errors, const Tensor& row_norms, Backend& backend);

// The same for codes whose error is that of the rounding alone: sum (w - value)² / 2, its norm sum w² / 2. w [rows, cols] in F32.
TileResult download_rounded_tile(const Tensor& w, std::int64_t group_size, const Tensor& codes,
                                 const Tensor& scales, const Tensor& zeros, Backend& backend);

// A linear with nothing solved yet. group_size -1, or beyond the row: one group.
QuantizedLinear unsolved_linear(const LinearSpec& spec, const LinearScheme& scheme);

// One that stays as it is.
QuantizedLinear kept_linear(const LinearSpec& spec);

// Rows of weights in F32, in the backend's memory.
Tensor tile_weights(const Tensor& weights, std::int64_t first, std::int64_t rows, Backend& backend);

// Runs `work` on a tile of a linear; an Error of it says of which.
void with_rows_named(const std::string& linear, std::int64_t first,
                     const std::function<void()>& work);

// What a rank makes of a tile, as bytes, and a reader of these.
using TileBytes = std::vector<std::byte>;
void append(TileBytes& to, std::span<const std::byte> bytes);
class TileReader {
 public:
  explicit TileReader(std::span<const std::byte> bytes) : rest_(bytes) {}
  void take(std::span<std::byte> to);  // the next ones
  bool at_end() const { return rest_.empty(); }

 private:
  std::span<const std::byte> rest_;
};
// Rows [first, first + rows) of a matrix.
std::span<std::byte> rows_of(HostTensor& matrix, std::int64_t first, std::int64_t rows);

// Cuts [0, rows) into tiles, makes those of this rank (tile t belongs to rank t % team.size()), and takes all of them, in order, on
// every rank of the team. Collective. Where `make` throws a NumericalError on any rank, all throw an UnquantizableError.
void share_tiles(Communicator& team, std::int64_t rows,
                 const std::function<TileBytes(std::int64_t first, std::int64_t rows)>& make,
                 const std::function<void(std::int64_t first, TileReader& bytes)>& take);

// Who solves a linear, and where: of a BlockSite, what that takes.
struct TeamSite {
  Communicator& team;
  Transport& device_team;
  Backend& backend;

  TeamSite(Communicator& ranks, Transport& devices, Backend& memory)
      : team(ranks), device_team(devices), backend(memory) {}
  explicit TeamSite(const BlockSite& site) : TeamSite(site.team, site.device_team, site.backend) {}
};

// Cuts [0, linear.rows) into tiles, solves those of this rank (tile t belongs to rank t % team.size()), and brings codes, scales
// and zeros, from device to device, and the error to every rank of the team. Collective.
SolveError solve_in_tiles(
    const TeamSite& site, QuantizedLinear& linear,
    const std::function<TileResult(std::int64_t first, std::int64_t rows)>& solve);

// The sum over tiles of `count` numbers each, in tile order, on every rank of the team; tiles belong to ranks as above. Collective.
std::vector<double> sum_over_tiles(
    Communicator& team, std::int64_t rows, std::size_t count,
    const std::function<std::vector<double>(std::int64_t first, std::int64_t rows)>& numbers);

}  // namespace roundhouse
