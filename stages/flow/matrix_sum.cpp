#include "stages/flow/matrix_sum.h"

#include <algorithm>
#include <utility>

namespace roundhouse {
namespace {

constexpr std::int64_t kBand = 512;  // rows

}  // namespace

MatrixSummand::MatrixSummand(Backend& backend, std::shared_ptr<Tensor> memory, Matrix rows,
                             Part part)
    : backend_(backend), memory_(std::move(memory)), rows_(rows), part_(part) {}

MatrixSummand::MatrixSummand(Backend& backend, std::shared_ptr<Tensor> memory, Part part)
    : MatrixSummand(backend, memory, memory->view(), part) {}

std::span<std::byte> MatrixSummand::bytes() {
  return {static_cast<std::byte*>(rows_.data),
          static_cast<std::size_t>(rows_.rows * rows_.cols) * sizeof(float)};
}

// Matrices of 70B models are gigabytes: of a triangle, only what counts is touched, and a little above it.
template <class Visit>
void MatrixSummand::for_each_band(Visit visit) {
  for (std::int64_t begin = 0; begin < rows_.rows; begin += kBand) {
    const std::int64_t end = std::min(begin + kBand, rows_.rows);
    const std::int64_t width = part_ == Part::kLowerTriangle ? end : rows_.cols;
    visit([=](const Matrix& m) { return m.row_range(begin, end).col_range(0, width); });
  }
}

void MatrixSummand::add(Summand& other) {
  Summand* const one = &other;
  add_up({&one, 1}, /*onto=*/true);
}

void MatrixSummand::add_up(std::span<Summand* const> terms, bool onto) {
  for_each_band([&](auto band) {
    AddUp op{.from = {}, .count = 0, .accumulate = onto, .into = band(rows_)};
    for (Summand* const term : terms)
      op.from[op.count++] = band(static_cast<MatrixSummand*>(term)->rows_);
    backend_.add_up(op);
  });
}

void MatrixSummand::clear() {
  for_each_band([&](auto band) { backend_.zero(band(rows_)); });
}

TreeSum make_matrix_sum(Transport& device_team, Backend& backend, int parts,
                        std::function<std::shared_ptr<Tensor>()> memory, MatrixSummand::Part part,
                        int added_at_once) {
  return TreeSum(
      device_team, parts,
      [&backend, memory = std::move(memory), part] {
        return std::make_unique<MatrixSummand>(backend, memory(), part);
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
    device_team.broadcast({static_cast<std::byte*>(piece.data),
                           static_cast<std::size_t>(piece.rows * piece.cols) * sizeof(float)},
                          owner);
    monitor.tick();
  }
}

}  // namespace roundhouse
