#include "model/checkpoint/tensor_writer.h"

#include <cerrno>
#include <cstring>
#include <utility>

#include "base/error.h"
#include "base/quote.h"

namespace roundhouse {

TensorWriter::~TensorWriter() {
  if (file_ != nullptr)
    std::fclose(file_);  // only while an error is on its way: close() came first
}

void TensorWriter::fail(const std::string& what) const {
  throw Error(path_.string() + ": " + what);
}

void TensorWriter::put(const void* data, std::size_t bytes) {
  if (bytes > 0 && std::fwrite(data, 1, bytes, file_) != bytes)
    fail(std::string("cannot write: ") + std::strerror(errno));
}

void TensorWriter::begin(std::string_view header, std::vector<Entry> tensors,
                         std::uint64_t alignment) {
  tensors_ = std::move(tensors);
  alignment_ = alignment;
  file_ = std::fopen(path_.c_str(), "wb");
  if (file_ == nullptr) fail(std::string("cannot write: ") + std::strerror(errno));
  put(header.data(), header.size());
  if (!tensors_.empty()) missing_ = tensors_.front().bytes;
}

// Precondition: nothing of the current tensor is missing.
void TensorWriter::next() {
  const std::uint64_t over = tensors_[current_].bytes % alignment_;
  for (std::uint64_t i = over; i != 0 && i < alignment_; ++i) put("", 1);
  ++current_;
  missing_ = current_ < tensors_.size() ? tensors_[current_].bytes : 0;
}

void TensorWriter::write(const std::string& name, std::span<const std::byte> bytes) {
  require(file_ != nullptr, "write after close");
  while (current_ < tensors_.size() && missing_ == 0 && tensors_[current_].name != name) next();
  if (current_ == tensors_.size() || tensors_[current_].name != name || bytes.size() > missing_)
    fail("tensor " + in_quotes(name) + " is written out of order or is longer than announced");
  put(bytes.data(), bytes.size());
  missing_ -= bytes.size();
}

void TensorWriter::close() {
  require(file_ != nullptr, "close twice");
  while (current_ < tensors_.size() && missing_ == 0) next();
  if (current_ < tensors_.size())
    fail("tensor " + in_quotes(tensors_[current_].name) + " is incomplete");
  if (std::fclose(std::exchange(file_, nullptr)) != 0)
    fail(std::string("cannot write: ") + std::strerror(errno));
}

}  // namespace roundhouse
