// RunStore on disk: one HDF5 file a record, sealed.
//
// The first 512 bytes (HDF5's user block, which every HDF5 reader skips) are text padded with NUL:
//   roundhouse-record 2\nkey KEY\nidentity HEX\nbytes N\nxxh3-128 HEX\n
// where identity is the hash of what the record depends on (model, calibration, recipe; "none" if
// nothing was said), N the length of the rest of the file, and the hash that of the four lines
// before it and the rest. So a file is complete, and the one that belongs here, or it is not, and
// needs no second file to prove it. Equal records make equal files, byte for byte. (Version 1 had
// no key; its records count as damaged.)
//
// Tensors are contiguous datasets /NAME (F16 and BF16 as HDF5 custom floats), attributes the string
// attribute "attributes" of the root group (JSON). The file is built in memory and written in one
// go: a commit needs as much memory as its record has, and a full disk meets no HDF5 file half
// open.
#pragma once

#include <filesystem>
#include <map>
#include <optional>
#include <set>
#include <string>

#include "pipeline/run/hdf5_record.h"
#include "stages/store/run_store.h"

namespace roundhouse {

class Hdf5Store final : public RunStore {
 public:
  // Makes the folder where needed.
  explicit Hdf5Store(std::filesystem::path root);

  // Records at `prefix` and below ("recipes/NAME"; the longest that fits counts) carry this
  // identity; one that carries another counts as damaged ("belongs to another configuration").
  void set_identity(const std::string& prefix, const std::string& identity);
  // Where several processes may write the same record at a time: what tells this one's temporary files from theirs.
  void set_writer(const std::string& name) { writer_ = name; }

  void commit(const std::string& key, const Record& record) override;
  std::optional<Record> load(const std::string& key) override;
  // Reads the seal, compares the file's size with it, and reads the attributes, which have checks of their own in HDF5.
  std::optional<nlohmann::json> attributes(const std::string& key) override;
  bool whole(const std::string& key) override;
  bool known_whole(const std::string& key) const override { return whole_.contains(key); }
  void doubt(const std::string& key) override;
  void remove(const std::string& key) override;  // and folders that it leaves empty
  std::vector<std::string> keys(const std::string& folder) override;
  // What processes that were killed while they wrote have left, and folders that are empty then, of these and below them. Nobody else
  // may be writing.
  void remove_unfinished(const std::vector<std::string>& folders);
  std::uint64_t bytes(const std::string& key) override;
  void expect(const std::string& key, std::uint64_t bytes) override;

  // root / key + ".h5". Throws Error for a key that is no plain path below the root.
  std::filesystem::path path_of(const std::string& key) const;

  // Empty if load() would give a record, else what is wrong with it ("missing", if there is none);
  // tells nobody. Throws Error if the file cannot be read.
  std::string check(const std::string& key);

 private:
  std::string identity_of(const std::string& key) const;  // empty: none was set
  // Nothing and no reason: there is none.
  std::optional<Record> read(const std::string& key, Content content, std::string& why);
  std::optional<nlohmann::json> read_attributes_only(const std::string& key, std::string& why);
  std::optional<Record> read_or_report(const std::string& key, Content content);
  void report(const std::string& key, const std::string& why);
  void remove_empty_folders(std::filesystem::path folder);  // this one, and those it is in

  std::filesystem::path root_;
  std::string writer_;
  std::map<std::string, std::string> identities_;
  std::map<std::string, std::uint64_t> expected_;  // records of other ranks, not seen here yet
  std::set<std::string> reported_;                 // keys whose damage on_damage was told of
  std::set<std::string> whole_;  // keys of records that were written, or read whole
};

}  // namespace roundhouse
