// F32 matrices in the backends' memories that a team sums and shares. Everything here waits for what is queued before it hands
// memory to messages, which know nothing of the queue (comm/communicator.h).
#pragma once

#include <cstdint>
#include <functional>
#include <memory>

#include "comm/tree_sum.h"
#include "kernels/backend.h"
#include "stages/flow/monitor.h"

namespace roundhouse {

// Of a matrix whose rows are one behind the other.
std::span<std::byte> bytes_of(const Matrix& matrix);

// A partial sum for the tree of comm/tree_sum.h: part of a matrix, the rest of which may belong to other sums.
class MatrixSummand final : public Summand {
 public:
  MatrixSummand(Backend& backend, std::shared_ptr<Tensor> memory, Matrix part);

  // Of a part whose rows are not one behind the other: of a copy in which they are, which takes its place.
  std::span<std::byte> bytes() override;
  void add(Summand& other) override;
  void add_up(std::span<Summand* const> terms, bool onto) override;
  Matrix matrix() const { return part_; }
  const std::shared_ptr<Tensor>& memory() const { return memory_; }

 private:
  Backend& backend_;
  std::shared_ptr<Tensor> memory_;
  Matrix part_;
};

// Of [rows, cols]; other ranks' partial sums are received into memory of that shape. `added_at_once`: see TreeSum.
TreeSum make_matrix_sum(Transport& device_team, Backend& backend, int parts, std::int64_t rows,
                        std::int64_t cols, int added_at_once = 1);

// Collective: the matrix that `owner` has, on every rank. Elsewhere any tensor goes in.
void share(Tensor& matrix, std::int64_t rows, std::int64_t cols, int owner, Transport& device_team,
           Backend& backend, Monitor& monitor);

}  // namespace roundhouse
