#include "stages/flow/shard_sum.h"

#include <utility>

#include "base/error.h"

namespace roundhouse {

ShardMatrixSum::ShardMatrixSum(const BlockSite& site, std::int64_t rows, std::int64_t cols,
                               Part part)
    : backend_(site.backend),
      rows_(rows),
      cols_(cols),
      part_(part),
      tree_(make_matrix_sum(
          site.device_team, site.backend, site.samples->shards(), [this] { return memory(); },
          part)) {
  require(part == Part::kWhole || rows == cols, "a triangle is of a square");
}

ShardMatrixSum::~ShardMatrixSum() = default;

// Matrices of 70B models are gigabytes: the memory of one that is used up serves the next.
std::shared_ptr<Tensor> ShardMatrixSum::memory() {
  auto matrix = std::make_unique<Tensor>();
  if (spare_.empty()) {
    *matrix = Tensor(backend_, DType::kF32, rows_, cols_);
  } else {
    *matrix = std::move(spare_.back());
    spare_.pop_back();
  }
  return {matrix.release(), [this](Tensor* used) {
            if (!used->empty()) spare_.push_back(std::move(*used));
            delete used;
          }};
}

void ShardMatrixSum::begin_shard() {
  sum_ = std::make_unique<MatrixSummand>(backend_, memory(), part_);
  sum_->clear();
}

Matrix ShardMatrixSum::matrix() { return sum_->matrix(); }

void ShardMatrixSum::end_shard(int shard) { tree_.add(shard, std::move(sum_)); }

Tensor ShardMatrixSum::finish(int owner) {
  Tensor whole;
  if (const std::unique_ptr<Summand> sum = tree_.finish(owner)) {
    whole = std::move(static_cast<MatrixSummand&>(*sum).memory());
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

ShardNumberSum::ShardNumberSum(const BlockSite& site, std::size_t count)
    : team_(site.team), count_(count), tree_(site.team, site.samples->shards(), [count] {
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

}  // namespace roundhouse
