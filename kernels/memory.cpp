#include "kernels/memory.h"

#include <algorithm>
#include <vector>

#include "base/error.h"
#include "kernels/host_threads.h"

namespace roundhouse {
namespace {

// Bytes from a matrix's first element to that of row `row` and column `col`. An empty matrix may
// have no memory.
std::size_t offset_of(const ConstMatrix& m, std::int64_t row, std::int64_t col) {
  return m.data == nullptr ? 0 : static_cast<std::size_t>(row * m.stride + col) * size_of(m.type);
}

void check_range(std::int64_t begin, std::int64_t end, std::int64_t size) {
  require(0 <= begin && begin <= end && end <= size, "a range leaves its matrix");
}

}  // namespace

Matrix Matrix::row_range(std::int64_t begin, std::int64_t end) const {
  check_range(begin, end, rows);
  return {static_cast<std::byte*>(data) + offset_of(*this, begin, 0), type, end - begin, cols,
          stride};
}

Matrix Matrix::col_range(std::int64_t begin, std::int64_t end) const {
  check_range(begin, end, cols);
  return {static_cast<std::byte*>(data) + offset_of(*this, 0, begin), type, rows, end - begin,
          stride};
}

float* Matrix::f32() const {
  require(type == DType::kF32, "a matrix is not F32");
  return static_cast<float*>(data);
}

ConstMatrix ConstMatrix::row_range(std::int64_t begin, std::int64_t end) const {
  check_range(begin, end, rows);
  return {static_cast<const std::byte*>(data) + offset_of(*this, begin, 0), type, end - begin, cols,
          stride};
}

ConstMatrix ConstMatrix::col_range(std::int64_t begin, std::int64_t end) const {
  check_range(begin, end, cols);
  return {static_cast<const std::byte*>(data) + offset_of(*this, 0, begin), type, rows, end - begin,
          stride};
}

const float* ConstMatrix::f32() const {
  require(type == DType::kF32, "a matrix is not F32");
  return static_cast<const float*>(data);
}

Tensor::Tensor(Memory& memory, DType type, std::int64_t rows, std::int64_t cols)
    : buffer_(
          memory.allocate(static_cast<std::size_t>(element_count({rows, cols})) * size_of(type))),
      type_(type),
      rows_(rows),
      cols_(cols) {}

Tensor Tensor::borrowed() const {
  Tensor tensor;
  tensor.buffer_ = {buffer_.get(), [](std::byte*) {}};
  tensor.type_ = type_;
  tensor.rows_ = rows_;
  tensor.cols_ = cols_;
  return tensor;
}

namespace {

void convert_on_host_threads(DType from_type, const std::byte* from, DType to_type, std::byte* to,
                             std::size_t count) {
  constexpr std::size_t kPiece = std::size_t{1} << 18;  // elements
  on_host_threads(static_cast<std::int64_t>((count + kPiece - 1) / kPiece),
                  [&](std::int64_t piece) {
                    const std::size_t at = static_cast<std::size_t>(piece) * kPiece;
                    convert(from_type, from + at * size_of(from_type), to_type,
                            to + at * size_of(to_type), std::min(kPiece, count - at));
                  });
}

}  // namespace

Tensor Tensor::upload(Memory& memory, const HostView& host, DType type) {
  require(host.shape.size() <= 2, "a tensor on a device has at most two dimensions");
  const std::int64_t rows = host.shape.size() == 2 ? host.shape[0] : 1;
  const std::int64_t cols = host.shape.empty() ? 1 : host.shape.back();
  Tensor tensor(memory, type, rows, cols);
  require(host.bytes.size() == static_cast<std::size_t>(rows * cols) * size_of(host.type),
          "a tensor's bytes do not match its shape");
  upload_values(host.bytes, host.type, memory, type, tensor.buffer_.get());
  return tensor;
}

std::span<std::byte> bytes_of(Tensor& tensor) {
  return {static_cast<std::byte*>(tensor.view().data), tensor.bytes()};
}

void upload_values(std::span<const std::byte> from, DType from_type, Memory& memory, DType to_type,
                   void* to) {
  if (from_type == to_type) {
    memory.upload(from, to);
    memory.sync();  // `from` need not outlive this call
    return;
  }
  const std::size_t count = from.size() / size_of(from_type), each = size_of(to_type);
  std::byte* const target = static_cast<std::byte*>(to);
  if (memory.is_host_memory()) {
    convert_on_host_threads(from_type, from.data(), to_type, target, count);
    return;
  }
  // By way of a buffer that is kept, since new memory takes as long as the work.
  constexpr std::size_t kAtATime = std::size_t{8} << 20;  // elements
  static thread_local std::vector<std::byte> kept;
  kept.resize(std::max(kept.size(), std::min(count, kAtATime) * each));
  for (std::size_t begin = 0; begin < count; begin += kAtATime) {
    const std::size_t n = std::min(count - begin, kAtATime);
    convert_on_host_threads(from_type, from.data() + begin * size_of(from_type), to_type,
                            kept.data(), n);
    memory.upload(std::span(kept).first(n * each), target + begin * each);
    memory.sync();  // before the buffer is written again
  }
}

Memory::UploadTicket Memory::upload_ahead(std::span<const std::byte> from, void* to) {
  upload(from, to);
  return 0;
}
void Memory::await_upload(UploadTicket) {}
void Memory::download_behind(const void* from, std::span<std::byte> to) { download(from, to); }
void Memory::finish_downloads() {}
std::string Memory::pin(std::span<std::byte>) { return {}; }
void Memory::unpin(std::span<std::byte>) noexcept {}

Tensor upload_index(std::span<const std::int64_t> indices, Memory& memory) {
  HostTensor host(DType::kI32, {1, static_cast<std::int64_t>(indices.size())});
  std::ranges::transform(indices, host.as<std::int32_t>().begin(),
                         [](std::int64_t i) { return static_cast<std::int32_t>(i); });
  Tensor tensor = Tensor::upload(memory, host.view(), DType::kI32);
  memory.sync();  // the host copy ends here
  return tensor;
}

}  // namespace roundhouse
