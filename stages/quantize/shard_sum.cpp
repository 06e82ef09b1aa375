#include "stages/quantize/shard_sum.h"

#include <algorithm>
#include <utility>

#include "base/error.h"

namespace roundhouse {
namespace {

constexpr std::int64_t kBand = 512;  // rows

}  // namespace

// Matrices of 70B models are gigabytes: the memory of one that is used up serves the next, and only what counts of a
// triangle is touched.
class ShardMatrixSum::Sum final : public Summand {
 public:
  explicit Sum(ShardMatrixSum& of) : of_(of) {
    if (of_.spare_.empty()) {
      matrix_ = Tensor(of_.backend_, DType::kF32, of_.rows_, of_.cols_);
    } else {
      matrix_ = std::move(of_.spare_.back());
      of_.spare_.pop_back();
    }
  }
  ~Sum() override {
    if (!matrix_.empty()) of_.spare_.push_back(std::move(matrix_));
  }

  std::span<std::byte> bytes() override {
    of_.backend_.sync();
    return {static_cast<std::byte*>(matrix_.view().data), matrix_.bytes()};
  }
  void add(Summand& other) override {
    Tensor& from = static_cast<Sum&>(other).matrix_;
    for_each_band([&](auto band) { of_.backend_.add(band(from.view()), band(matrix_.view())); });
  }
  void clear() {
    for_each_band([&](auto band) { of_.backend_.zero(band(matrix_.view())); });
  }
  Tensor& matrix() { return matrix_; }

 private:
  // Calls visit(band) with the parts that cover what counts (of a triangle, a little above it too).
  template <class Visit>
  void for_each_band(Visit visit) {
    for (std::int64_t begin = 0; begin < of_.rows_; begin += kBand) {
      const std::int64_t end = std::min(begin + kBand, of_.rows_);
      const std::int64_t width = of_.part_ == Part::kLowerTriangle ? end : of_.cols_;
      visit([=](auto matrix) { return matrix.row_range(begin, end).col_range(0, width); });
    }
  }

  ShardMatrixSum& of_;
  Tensor matrix_;
};

ShardMatrixSum::ShardMatrixSum(const BlockTask& task, std::int64_t rows, std::int64_t cols,
                               Part part)
    : backend_(task.backend),
      rows_(rows),
      cols_(cols),
      part_(part),
      tree_(task.device_team, task.samples->shards(),
            [this] { return std::make_unique<Sum>(*this); }) {
  require(part == Part::kWhole || rows == cols, "a triangle is of a square");
}

ShardMatrixSum::~ShardMatrixSum() = default;

void ShardMatrixSum::begin_shard() {
  sum_ = std::make_unique<Sum>(*this);
  sum_->clear();
}

Matrix ShardMatrixSum::matrix() { return sum_->matrix().view(); }

void ShardMatrixSum::end_shard(int shard) { tree_.add(shard, std::move(sum_)); }

Tensor ShardMatrixSum::finish(int owner) {
  Tensor whole;
  if (const std::unique_ptr<Summand> sum = tree_.finish(owner)) {
    whole = std::move(static_cast<Sum&>(*sum).matrix());
  }
  spare_.clear();
  return whole;
}

class ShardNumberSum::Sum final : public Summand {
 public:
  explicit Sum(std::vector<double> numbers) : numbers_(std::move(numbers)) {}
  std::span<std::byte> bytes() override { return std::as_writable_bytes(std::span(numbers_)); }
  void add(Summand& other) override {
    const std::vector<double>& from = static_cast<Sum&>(other).numbers_;
    for (std::size_t i = 0; i < numbers_.size(); ++i) numbers_[i] += from[i];
  }
  const std::vector<double>& numbers() const { return numbers_; }

 private:
  std::vector<double> numbers_;
};

ShardNumberSum::ShardNumberSum(const BlockTask& task, std::size_t count)
    : team_(task.team), count_(count), tree_(task.team, task.samples->shards(), [count] {
        return std::make_unique<Sum>(std::vector<double>(count));
      }) {}

void ShardNumberSum::add(int shard, std::vector<double> numbers) {
  require(numbers.size() == count_, "a shard has another count of numbers");
  tree_.add(shard, std::make_unique<Sum>(std::move(numbers)));
}

std::vector<double> ShardNumberSum::finish() {
  std::vector<double> numbers(count_);
  if (const std::unique_ptr<Summand> sum = tree_.finish(0)) {
    numbers = static_cast<const Sum&>(*sum).numbers();
  }
  team_.broadcast(std::as_writable_bytes(std::span(numbers)), 0);
  return numbers;
}

void share(Tensor& matrix, std::int64_t rows, std::int64_t cols, int owner, const BlockTask& task) {
  if (task.team.size() == 1) return;
  if (task.team.rank() != owner) matrix = Tensor(task.backend, DType::kF32, rows, cols);
  task.backend.sync();  // messages do not wait for what is only queued
  // In pieces: a collective of gigabytes would leave nobody to say that this rank is alive.
  constexpr std::int64_t kPieceBytes = std::int64_t{64} << 20;
  const std::int64_t rows_each =
      std::max<std::int64_t>(1, kPieceBytes / (4 * std::max<std::int64_t>(1, cols)));
  for (std::int64_t begin = 0; begin < rows; begin += rows_each) {
    const Matrix piece = matrix.view().row_range(begin, std::min(rows, begin + rows_each));
    task.device_team.broadcast({static_cast<std::byte*>(piece.data),
                                static_cast<std::size_t>(piece.rows * piece.cols) * sizeof(float)},
                               owner);
    task.monitor.tick();
  }
}

}  // namespace roundhouse
