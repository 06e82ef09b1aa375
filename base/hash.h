// XXH3-128 for our own files (speed), SHA-256 for exported ones (what people check with sha256sum).
#pragma once

#include <cstddef>
#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <string_view>

namespace roundhouse {

class Xxh3 {
 public:
  Xxh3();
  ~Xxh3();
  void update(std::span<const std::byte> bytes);
  std::string hex() const;  // 32 hexadecimal digits of what was added so far

 private:
  struct State;
  std::unique_ptr<State> state_;
};

std::string xxh3_hex(std::string_view text);
std::string xxh3_hex_of_file(
    const std::filesystem::path& path);  // of its content; throws InputError
std::string sha256_hex_of_file(const std::filesystem::path& path);  // 64 digits; throws Error

}  // namespace roundhouse
