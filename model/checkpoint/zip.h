// ZIP archives whose entries are stored, not compressed: PyTorch's checkpoints.
#pragma once

#include <cstddef>
#include <map>
#include <span>
#include <string>

namespace roundhouse {

// Name and bytes of every entry, as the central directory at the archive's end has them (ZIP64 too); the bytes are parts of
// `archive`. Checksums are not compared. Throws InputError naming `file` and, where it applies, the entry: not a ZIP archive,
// damaged, compressed, encrypted, a name that stands twice.
std::map<std::string, std::span<const std::byte>> read_stored_zip(
    std::span<const std::byte> archive, const std::string& file);

}  // namespace roundhouse
