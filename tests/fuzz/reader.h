// What the fuzzers share: each hands one input to a reader, which may refuse it but do nothing else wrong.
#pragma once

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <string>
#include <string_view>

#include <unistd.h>

#include "base/error.h"

namespace roundhouse::fuzz {

// A folder of this process, in memory where there is such a file system; it goes with the process if that ends well.
inline const std::filesystem::path& folder() {
  static const struct Folder {
    Folder() { std::filesystem::create_directories(path); }
    ~Folder() {
      std::error_code ignored;
      std::filesystem::remove_all(path, ignored);
    }
    std::filesystem::path path =
        (::access("/dev/shm", W_OK) == 0 ? std::filesystem::path("/dev/shm")
                                         : std::filesystem::temp_directory_path()) /
        ("roundhouse-fuzz-" + std::to_string(::getpid()));
  } folder;
  return folder.path;
}

inline std::filesystem::path write(const std::string& name, std::string_view bytes) {
  const std::filesystem::path path = folder() / name;
  std::ofstream file(path, std::ios::binary | std::ios::trunc);
  file.write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
  if (!file.flush()) std::abort();  // the disk is full
  return path;
}

inline std::string_view text_of(const std::uint8_t* data, std::size_t size) {
  return {reinterpret_cast<const char*>(data), size};
}

// Refusals are Error with one line; anything else that is thrown ends the program, and so does a broken promise of ours.
template <class Read>
int may_refuse(const Read& read) {
  try {
    read();
  } catch (const Error& error) {
    const std::string_view what = error.what();
    if (what.starts_with("internal error") || what.find('\n') != what.npos || what.size() > 4096) {
      std::fprintf(stderr, "not a good refusal: %s\n", error.what());
      std::abort();
    }
  }
  return 0;
}

}  // namespace roundhouse::fuzz

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size);
