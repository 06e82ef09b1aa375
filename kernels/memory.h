// Memory of one device, and matrices in it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>

#include "base/dtype.h"
#include "base/tensor.h"
#include "kernels/host_memory.h"

namespace roundhouse {

// Row-major views of backend memory. `stride` is in elements, from row to row; stride >= cols.
struct Matrix {
  void* data = nullptr;
  DType type = DType::kF32;
  std::int64_t rows = 0;
  std::int64_t cols = 0;
  std::int64_t stride = 0;

  Matrix row_range(std::int64_t begin, std::int64_t end) const;
  Matrix col_range(std::int64_t begin, std::int64_t end) const;
  float* f32() const;  // Precondition: type is F32
};

struct ConstMatrix {
  const void* data = nullptr;
  DType type = DType::kF32;
  std::int64_t rows = 0;
  std::int64_t cols = 0;
  std::int64_t stride = 0;

  ConstMatrix() = default;
  ConstMatrix(const void* d, DType t, std::int64_t r, std::int64_t c, std::int64_t s)
      : data(d), type(t), rows(r), cols(c), stride(s) {}
  ConstMatrix(const Matrix& m)  // NOLINT: a view of a view
      : data(m.data), type(m.type), rows(m.rows), cols(m.cols), stride(m.stride) {}
  ConstMatrix row_range(std::int64_t begin, std::int64_t end) const;
  ConstMatrix col_range(std::int64_t begin, std::int64_t end) const;
  const float* f32() const;
};

using Buffer = std::unique_ptr<std::byte, std::function<void(std::byte*)>>;

class Memory {
 public:
  virtual ~Memory() = default;

  // At least 64-byte aligned; not initialised. Zero bytes is allowed. Throws Error naming the size when out of memory.
  virtual Buffer allocate(std::size_t bytes) = 0;
  // Work is queued in call order; only download() and sync() wait for it. What upload() reads must live until then.
  virtual void upload(std::span<const std::byte> from, void* to) = 0;
  virtual void download(const void* from, std::span<std::byte> to) = 0;
  virtual void copy(ConstMatrix from,
                    Matrix to) = 0;  // same shape; converts between F32, F16 and BF16
  virtual void zero(Matrix m) = 0;
  virtual void sync() = 0;

  // Copies beside the queue, which overlap with kernels on a device that can (these here do not). What the host side points
  // at must live until the copy is done, and should be pinned.
  //
  // Starts when the work queued so far is done with `to`; work queued after await_upload() finds the bytes there.
  using UploadTicket = std::uint64_t;
  virtual UploadTicket upload_ahead(std::span<const std::byte> from, void* to);
  virtual void await_upload(UploadTicket ticket);
  // Reads what the work queued so far leaves in `from`, which may be freed at once, but not overwritten. The bytes are in `to`
  // after finish_downloads(). sync() does not wait for these.
  virtual void download_behind(const void* from, std::span<std::byte> to);
  virtual void finish_downloads();
  // Makes copies to and from this host memory fast; unpin() the same before it is unmapped. Where that cannot be, which is no
  // error (copies are slower then), returns why; else nothing.
  [[nodiscard]] virtual std::string pin(std::span<std::byte> host);
  virtual void unpin(std::span<std::byte> host) noexcept;  // destructors call it

  // Whether the host can read and write it in place, and messages between hosts move it.
  virtual bool is_host_memory() const { return false; }
  // What allocate() could still give, about; where several ranks take from the same memory, this one's share of it.
  virtual std::size_t available_bytes() const = 0;
  // The type in which this device holds weights and activations of a model: F32 on the CPU, a 16-bit float on a GPU.
  virtual DType activation_type() const = 0;
};

// Owns a dense matrix (stride == cols) in the memory of one backend.
class Tensor {
 public:
  Tensor() = default;
  Tensor(Memory& memory, DType type, std::int64_t rows, std::int64_t cols);  // not initialised
  static Tensor upload(Memory& memory, const HostView& host,
                       DType type);  // 1-D becomes one row; converts on the host

  // The same memory, which this one owns and outlives: to be read.
  Tensor borrowed() const;

  bool empty() const { return buffer_ == nullptr; }
  DType type() const { return type_; }
  std::int64_t rows() const { return rows_; }
  std::int64_t cols() const { return cols_; }
  std::size_t bytes() const { return static_cast<std::size_t>(rows_ * cols_) * size_of(type_); }
  Matrix view() { return {buffer_.get(), type_, rows_, cols_, cols_}; }
  ConstMatrix view() const { return {buffer_.get(), type_, rows_, cols_, cols_}; }
  float* f32() { return view().f32(); }
  const float* f32() const { return view().f32(); }

 private:
  Buffer buffer_;
  DType type_ = DType::kF32;
  std::int64_t rows_ = 0;
  std::int64_t cols_ = 0;
};

// Values of the host, converted there, to `to` in the memory; they need not outlive the call.
void upload_values(std::span<const std::byte> from, DType from_type, Memory& memory, DType to_type,
                   void* to);

// All of it, in that memory.
std::span<std::byte> bytes_of(Tensor& tensor);

// Indices for kernels that gather: [1, n] I32. Precondition: each fits.
Tensor upload_index(std::span<const std::int64_t> indices, Memory& memory);

}  // namespace roundhouse
