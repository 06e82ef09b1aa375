#pragma once

#include <exception>
#include <filesystem>
#include <optional>
#include <span>
#include <string>

#include "comm/communicator.h"
#include "tests/base/temporary_folder.h"

namespace roundhouse {

// One for all ranks of a test: rank 0's. Collective.
class SharedFolder {
 public:
  explicit SharedFolder(Communicator& world) : world_(world) {
    std::string name(4096, '\0');
    if (world.rank() == 0) {
      own_.emplace();
      name.replace(0, own_->path().string().size(), own_->path().string());
    }
    world.broadcast(std::as_writable_bytes(std::span(name)), 0);
    path_ = name.c_str();
  }
  ~SharedFolder() {
    if (std::uncaught_exceptions() == 0) world_.barrier();  // nobody still reads
  }
  SharedFolder(const SharedFolder&) = delete;
  SharedFolder& operator=(const SharedFolder&) = delete;

  const std::filesystem::path& path() const { return path_; }

 private:
  Communicator& world_;
  std::optional<TemporaryFolder> own_;
  std::filesystem::path path_;
};

}  // namespace roundhouse
