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

// A partial sum for the tree of comm/tree_sum.h: some rows of a matrix, whose others may belong to other sums.
class MatrixSummand final : public Summand {
 public:
  // kLowerTriangle: above the diagonal it may be anything (what Gram adds to).
  enum class Part { kWhole, kLowerTriangle };

  MatrixSummand(Backend& backend, std::shared_ptr<Tensor> memory, Matrix rows,
                Part part = Part::kWhole);
  MatrixSummand(Backend& backend, std::shared_ptr<Tensor> memory, Part part = Part::kWhole);

  std::span<std::byte> bytes() override;
  void add(Summand& other) override;
  void add_up(std::span<Summand* const> terms, bool onto) override;
  void clear();  // to zero
  Matrix matrix() const { return rows_; }
  Tensor& memory() { return *memory_; }

 private:
  template <class Visit>
  void for_each_band(Visit visit);

  Backend& backend_;
  std::shared_ptr<Tensor> memory_;
  Matrix rows_;
  Part part_;
};

// `memory` gives what a partial sum of another rank is received into: a whole tensor of the common shape.
TreeSum make_matrix_sum(Transport& device_team, Backend& backend, int parts,
                        std::function<std::shared_ptr<Tensor>()> memory,
                        MatrixSummand::Part part = MatrixSummand::Part::kWhole,
                        int added_at_once = 1);

// Collective: the matrix that `owner` has, on every rank. Elsewhere any tensor goes in.
void share(Tensor& matrix, std::int64_t rows, std::int64_t cols, int owner, Transport& device_team,
           Backend& backend, Monitor& monitor);

}  // namespace roundhouse
