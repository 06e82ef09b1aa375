#include "stages/flow/matrix_sum.h"

#include <algorithm>
#include <utility>

#include "base/error.h"

namespace roundhouse {

std::span<std::byte> bytes_of(const Matrix& matrix) {
  require(matrix.stride == matrix.cols, "a matrix that is sent has gaps between its rows");
  return {static_cast<std::byte*>(matrix.data),
          static_cast<std::size_t>(matrix.rows * matrix.cols) * size_of(matrix.type)};
}

MatrixSummand::MatrixSummand(Backend& backend, std::shared_ptr<Tensor> memory, Matrix part)
    : backend_(backend), memory_(std::move(memory)), part_(part) {}

std::span<std::byte> MatrixSummand::bytes() {
  if (part_.stride != part_.cols) {
    auto close = std::make_shared<Tensor>(backend_, DType::kF32, part_.rows, part_.cols);
    backend_.copy(part_, close->view());
    part_ = close->view();
    memory_ = std::move(close);
  }
  return bytes_of(part_);
}

void MatrixSummand::add(Summand& other) {
  Summand* const one = &other;
  add_up({&one, 1}, /*onto=*/true);
}

void MatrixSummand::add_up(std::span<Summand* const> terms, bool onto) {
  AddUp op{.from = {}, .count = 0, .accumulate = onto, .into = part_};
  for (Summand* const term : terms) op.from[op.count++] = static_cast<MatrixSummand*>(term)->part_;
  backend_.add_up(op);
}

TreeSum make_matrix_sum(Transport& device_team, Backend& backend, int parts, std::int64_t rows,
                        std::int64_t cols, int added_at_once) {
  return TreeSum(
      device_team, parts,
      [&backend, rows, cols] {
        auto memory = std::make_shared<Tensor>(backend, DType::kF32, rows, cols);
        const Matrix whole = memory->view();
        return std::make_unique<MatrixSummand>(backend, std::move(memory), whole);
      },
      [&backend] { backend.sync(); }, added_at_once);
}

void share(Tensor& matrix, std::int64_t rows, std::int64_t cols, int owner, Transport& device_team,
           Backend& backend, Monitor& monitor) {
  if (device_team.size() == 1) return;
  if (device_team.rank() != owner) matrix = Tensor(backend, DType::kF32, rows, cols);
  backend.sync();
  // In pieces: a collective of gigabytes would leave nobody to say that this rank is alive.
  constexpr std::int64_t kPieceBytes = std::int64_t{64} << 20;
  const std::int64_t rows_each =
      std::max<std::int64_t>(1, kPieceBytes / (4 * std::max<std::int64_t>(1, cols)));
  for (std::int64_t begin = 0; begin < rows; begin += rows_each) {
    const Matrix piece = matrix.view().row_range(begin, std::min(rows, begin + rows_each));
    device_team.broadcast(bytes_of(piece), owner);
    monitor.tick();
  }
}

}  // namespace roundhouse
