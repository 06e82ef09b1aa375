// The one factorization that GPTQ needs of a Hessian H: the upper triangular U with (P H Pᵀ)⁻¹ = Uᵀ U, where P is the order in
// which columns are quantized.
//
// Not as the reference implementation (Cholesky, inverse, Cholesky again: 4 n³ / 3 multiply-adds), but by one Cholesky factorization of the
// matrix with rows and columns in reverse, and one triangular inverse (2 n³ / 3 together). With J the reversal,
//   J A J = L Lᵀ   =>   A = R Rᵀ with R = J L J upper triangular   =>   A⁻¹ = R⁻ᵀ R⁻¹   =>   U = R⁻¹ = J L⁻¹ J.
//
// Before: a column k with H_kk = 0 was never used (dead); H_kk = 1 then. lambda = damping * mean(diagonal) is added to the diagonal.
// Where the factorization fails all the same (too few tokens, strongly correlated inputs):
//   damping 0.01 -> 0.02 -> 0.04 -> .. -> 1       doubled, since each try costs a whole factorization: 8 at most from 0.01
//   then with damping 1 a diagonal floor 1e-6 * 10^(r-1) * max |diagonal| on top, r = 1..6
//   then no factor: the linears are rounded to nearest.
// (GPTQModel goes the same way, in steps of 0.01.)
#pragma once

#include <cstdint>
#include <vector>

#include "comm/communicator.h"
#include "kernels/backend.h"
#include "stages/flow/monitor.h"

namespace roundhouse {

enum class FactorStatus : std::int32_t { kDone, kNotPositiveDefinite, kNotFinite };

struct HessianFactor {
  FactorStatus status = FactorStatus::kDone;
  double damping = 0;               // of the last try
  std::int32_t tries = 0;           // factorizations, the successful one included
  double diagonal_floor = 0;        // absolute; 0: none
  std::vector<std::int64_t> order;  // order[i]: the column that is quantized i-th
  std::vector<float> diagonal;      // of H, by column; 1 where dead
  std::vector<std::uint8_t> dead;   // by column
  Tensor upper;                     // U, [n, n] F32; empty unless done

  bool same_as_columns() const;  // order[i] == i for all i
};

// `hessian`: F32 [n, n], symmetric, in the backend's memory. At most two more matrices of its size are held. by_importance: order by descending diagonal, ties by column; else as the columns are.
// Not finite, or not positive definite whatever the damping: says so in `status`.
HessianFactor factorize(const Tensor& hessian, double damping, bool by_importance, Backend& backend,
                        Monitor& monitor);

// Collective: what `factor` is at owner becomes what it is on every rank. Elsewhere any factor goes in. `team` moves host
// memory, `device_team` (the same ranks) the backend's.
void share(HessianFactor& factor, std::int64_t columns, int owner, Communicator& team,
           Transport& device_team, Backend& backend, Monitor& monitor);

}  // namespace roundhouse
