#include "stages/flow/shard_sum.h"

#include <algorithm>
#include <span>
#include <utility>

#include "base/error.h"

namespace roundhouse {

namespace {

constexpr std::int64_t kBand = 512;  // rows

struct Band {
  std::int64_t begin, end;  // rows
  std::int64_t width;       // columns that count
};

std::vector<Band> bands_of(std::int64_t rows, std::int64_t cols, ShardMatrixSum::Part part) {
  std::vector<Band> bands;
  for (std::int64_t begin = 0; begin < rows; begin += kBand) {
    const std::int64_t end = std::min(begin + kBand, rows);
    const bool triangle = part == ShardMatrixSum::Part::kLowerTriangle;
    bands.push_back({begin, end, triangle ? end : cols});
  }
  return bands;
}

Matrix part_of(Tensor& matrix, const Band& band) {
  return matrix.view().row_range(band.begin, band.end).col_range(0, band.width);
}

}  // namespace

ShardMatrixSum::ShardMatrixSum(Transport& device_team, Backend& backend, int shards,
                               std::int64_t rows, std::int64_t cols, Part part)
    : team_(device_team), backend_(backend), rows_(rows), cols_(cols), part_(part) {
  require(part == Part::kWhole || rows == cols, "a triangle is of a square");
  for (const Band& band : bands_of(rows, cols, part)) {
    bands_.push_back(make_matrix_sum(team_, backend_, shards, band.end - band.begin, band.width));
  }
}

ShardMatrixSum::~ShardMatrixSum() = default;

std::vector<double> ShardMatrixSum::bands(std::int64_t rows, std::int64_t cols, Part part) {
  std::vector<double> bytes;
  for (const Band& band : bands_of(rows, cols, part))
    bytes.push_back(4.0 * static_cast<double>((band.end - band.begin) * band.width));
  return bytes;
}

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
  shard_ = memory();
  for (const Band& band : bands_of(rows_, cols_, part_)) backend_.zero(part_of(*shard_, band));
}

Matrix ShardMatrixSum::matrix() { return shard_->view(); }

// The bands of a shard share its memory.
void ShardMatrixSum::end_shard(int shard) {
  const std::vector<Band> bands = bands_of(rows_, cols_, part_);
  for (std::size_t b = 0; b < bands.size(); ++b) {
    bands_[b].add(shard,
                  std::make_unique<MatrixSummand>(backend_, shard_, part_of(*shard_, bands[b])));
  }
  shard_.reset();
}

Tensor ShardMatrixSum::finish(int owner) {
  const std::vector<Band> bands = bands_of(rows_, cols_, part_);
  const int rank = team_.rank(), ranks = team_.size();
  std::shared_ptr<Tensor> whole;
  // As many bands at a time as there are ranks, one each.
  for (std::size_t first = 0; first < bands.size(); first += static_cast<std::size_t>(ranks)) {
    const std::size_t count = std::min(bands.size() - first, static_cast<std::size_t>(ranks));
    std::vector<int> at;
    for (std::size_t b = 0; b < count; ++b) at.push_back((owner + static_cast<int>(b)) % ranks);
    const auto summed = TreeSum::finish_all(std::span(bands_).subspan(first, count), at);

    if (rank == owner && !whole)
      whole = ranks == 1 ? static_cast<MatrixSummand&>(*summed.front()).memory() : memory();
    std::vector<Send> sends;
    std::vector<Receive> receives;
    std::vector<std::pair<Tensor, Matrix>> arrived;  // and where it goes
    for (std::size_t b = 0; b < count; ++b) {
      auto* const sum = static_cast<MatrixSummand*>(summed[b].get());
      if (rank != owner) {
        if (sum) sends.push_back({sum->bytes(), owner});
        continue;
      }
      const Matrix place = part_of(*whole, bands[first + b]);
      if (sum) {
        if (sum->matrix().data != place.data) backend_.copy(sum->matrix(), place);
      } else {
        Tensor close(backend_, DType::kF32, place.rows, place.cols);
        receives.push_back({bytes_of(close.view()), at[b]});
        arrived.emplace_back(std::move(close), place);
      }
    }
    if (count == 1) continue;  // the owner has it
    backend_.sync();
    team_.start(sends, receives)->wait();
    for (const auto& [close, place] : arrived) backend_.copy(close.view(), place);
  }
  spare_.clear();
  return whole ? std::move(*whole) : Tensor();
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
