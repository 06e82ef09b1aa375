// The seal of a record's file: text in its first 512 bytes, which says what the file holds and what its bytes are. hdf5_store.h shows it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <vector>

namespace roundhouse {

inline constexpr std::size_t kSealBytes = 512;  // the smallest user block that HDF5 knows

// What is wrong with a record's file. Reading throws it to the store, which lets none through.
struct Damage {
  std::string why;
};
// What is said of a whole record that carries another identity, and of one without a key.
inline constexpr const char* kForeignRecord = "belongs to another configuration";
inline constexpr const char* kEarlierRecord = "was written by an earlier version";

struct Seal {
  std::string key;
  std::string identity;
  std::uint64_t bytes = 0;  // behind the seal
  std::string hash;         // of head() and these

  std::string head() const;
  std::string text() const;  // kSealBytes
};

// Of a file with these bytes behind its seal. `identity` may be empty: nothing was said.
Seal make_seal(const std::string& key, const std::string& identity,
               std::span<const std::byte> content);

// The seal of the file that is to hold this record, compared with the file's length. Throws Damage; or what InputFile does where
// the file cannot be read, which says nothing about its content.
Seal quick_seal(const std::filesystem::path& path, const std::string& key);
// The same of a file that is read whole, into `image`, and compared with its hash.
Seal checked_seal(const std::filesystem::path& path, const std::string& key,
                  std::vector<std::byte>& image);

}  // namespace roundhouse
