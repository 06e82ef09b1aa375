#pragma once

#include <utility>

namespace roundhouse {

// Owns one C handle. Close runs in destructors, so it must not throw.
template <class T, auto Close>
class Unique {
 public:
  Unique() = default;
  explicit Unique(T handle) : handle_(handle), owns_(true) {}
  Unique(Unique&& other) noexcept
      : handle_(other.handle_), owns_(std::exchange(other.owns_, false)) {}
  Unique& operator=(Unique&& other) noexcept {
    std::swap(handle_, other.handle_);
    std::swap(owns_, other.owns_);
    return *this;
  }
  ~Unique() {
    if (owns_) Close(handle_);
  }

  T get() const { return handle_; }
  T release() {
    owns_ = false;
    return handle_;
  }

 private:
  T handle_{};
  bool owns_ = false;
};

}  // namespace roundhouse
