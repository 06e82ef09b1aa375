#include "pipeline/run/hdf5_store.h"

#include <unistd.h>

#include <algorithm>
#include <mutex>
#include <string_view>
#include <utility>
#include <vector>

#include "base/error.h"
#include "base/file.h"
#include "base/file_name.h"
#include "base/write_guard.h"
#include "pipeline/run/record_seal.h"

namespace roundhouse {
namespace {

namespace fs = std::filesystem;

// Of what stores keep in mind: a thread that writes behind commits while another one looks at other records.
std::mutex notes;

bool is_plain_key(const std::string& key) {
  constexpr std::size_t kLongest = 200;  // of a part
  for (std::size_t begin = 0; begin <= key.size();) {
    const std::size_t end = std::min(key.find('/', begin), key.size());
    if (!is_file_name(std::string_view(key).substr(begin, end - begin), kLongest)) return false;
    begin = end + 1;
  }
  return true;
}

}  // namespace

Hdf5Store::Hdf5Store(fs::path root) : root_(std::move(root)) {
  std::error_code error;
  fs::create_directories(root_, error);
  if (error) throw Error("cannot make " + root_.string() + ": " + error.message());
}

void Hdf5Store::set_identity(const std::string& prefix, const std::string& identity) {
  require(identity.size() <= 64 && !identity.empty() &&
              identity.find_first_not_of("0123456789abcdef") == std::string::npos,
          "an identity is a hexadecimal hash");
  identities_[prefix.ends_with('/') ? prefix.substr(0, prefix.size() - 1) : prefix] = identity;
}

std::string Hdf5Store::identity_of(const std::string& key) const {
  const std::string* longest = nullptr;
  for (const auto& [prefix, identity] :
       identities_) {  // in order, so that a longer one comes later
    if (prefix.empty() || key == prefix || key.starts_with(prefix + "/")) longest = &identity;
  }
  return longest != nullptr ? *longest : "";
}

fs::path Hdf5Store::path_of(const std::string& key) const {
  if (!is_plain_key(key)) throw Error("internal error: \"" + key + "\" is no key of a record");
  return root_ / (key + ".h5");
}

void Hdf5Store::commit(const std::string& key, const Record& record) {
  const fs::path path = path_of(key);
  try {
    const RecordImage image(path.native() + ".image", record);
    const std::span<char> bytes = image.bytes();
    const Seal seal = make_seal(key, identity_of(key), std::as_bytes(bytes.subspan(kSealBytes)));
    std::ranges::copy(seal.text(), bytes.begin());
    write_text_atomically(path, {bytes.data(), bytes.size()}, writer_);
  } catch (const InUseError&) {
    throw;  // nothing is wrong with the file
  } catch (const Error& error) {
    const std::string what = error.what();
    throw Error(what.starts_with("cannot write") ? what
                                                 : "cannot write " + path.string() + ": " + what);
  }
  const std::lock_guard lock(notes);
  reported_.erase(key);
  expected_.erase(key);
  whole_.insert(key);
}

std::optional<nlohmann::json> Hdf5Store::read_attributes_only(const std::string& key,
                                                              std::string& why) {
  const fs::path path = path_of(key);
  if (!bytes_of_file(path)) return std::nullopt;
  try {
    std::error_code error;
    const fs::file_status status = fs::status(path, error);
    if (!error && !fs::is_regular_file(status)) throw Damage{"it is not a file"};
    const Seal seal = quick_seal(path, key);
    const std::string wanted = identity_of(key);
    if (!wanted.empty() && seal.identity != wanted) throw Damage{kForeignRecord};
    if (auto attributes = attributes_in_file(path, seal.bytes)) return attributes;
  } catch (const Damage& damage) {
    why = damage.why;
    return std::nullopt;
  }
  std::optional<Record> record = read(key, Content::kAttributes, why);
  if (!record) return std::nullopt;
  return std::move(record->attributes);
}

std::optional<Record> Hdf5Store::read(const std::string& key, Content content, std::string& why) {
  const fs::path path = path_of(key);
  const auto expected = [&] {
    const std::lock_guard lock(notes);
    return expected_.extract(key);
  }();
  if (expected) {
    wait_until_visible(path, expected.mapped());
  } else if (!bytes_of_file(path)) {
    return std::nullopt;
  }
  std::error_code error;
  const fs::file_status status = fs::status(path, error);

  try {
    if (!error && !fs::is_regular_file(status)) throw Damage{"it is not a file"};
    std::vector<std::byte> image;
    const Seal seal = checked_seal(path, key, image);
    const std::string wanted = identity_of(key);
    if (!wanted.empty() && seal.identity != wanted) throw Damage{kForeignRecord};
    Record record = record_in_image(image, content);
    const std::lock_guard lock(notes);
    whole_.insert(key);
    return record;
  } catch (const Damage& damage) {
    why = damage.why;
    return std::nullopt;
  }
}

void Hdf5Store::report(const std::string& key, const std::string& why) {
  if (why.empty()) return;
  const bool first = [&] {
    const std::lock_guard lock(notes);
    whole_.erase(key);
    return reported_.insert(key).second;
  }();
  if (first && on_damage) on_damage(key, why);
}

std::optional<Record> Hdf5Store::read_or_report(const std::string& key, Content content) {
  std::string why;
  std::optional<Record> record = read(key, content, why);
  report(key, why);
  return record;
}

std::optional<Record> Hdf5Store::load(const std::string& key) {
  return read_or_report(key, Content::kAll);
}

std::optional<nlohmann::json> Hdf5Store::attributes(const std::string& key) {
  std::string why;
  std::optional<nlohmann::json> attributes = read_attributes_only(key, why);
  report(key, why);
  return attributes;
}

bool Hdf5Store::whole(const std::string& key) {
  return read_or_report(key, Content::kAttributes).has_value();
}

std::string Hdf5Store::check(const std::string& key) {
  std::string why;
  if (read(key, Content::kAttributes, why)) return "";
  return why.empty() ? "missing" : why;
}

std::vector<std::string> Hdf5Store::keys(const std::string& folder) {
  std::vector<std::string> keys;
  visit_below(root_ / folder, [&](const fs::directory_entry& entry) {
    const fs::path path = entry.path().lexically_relative(root_);
    std::string key = fs::path(path).replace_extension().generic_string();
    if (path.extension() == ".h5" && is_plain_key(key)) keys.push_back(std::move(key));
    return true;
  });
  std::ranges::sort(keys);
  return keys;
}

std::uint64_t Hdf5Store::bytes(const std::string& key) {
  return bytes_of_file(path_of(key)).value_or(0);
}

void Hdf5Store::doubt(const std::string& key) {
  const std::lock_guard lock(notes);
  whole_.erase(key);
  expected_.erase(key);
}

void Hdf5Store::expect(const std::string& key, std::uint64_t bytes) {
  const std::lock_guard lock(notes);
  expected_[key] = bytes;
}

void Hdf5Store::remove(const std::string& key) {
  const fs::path path = path_of(key);
  pass_write_guard();
  std::error_code error;
  fs::remove(path, error);
  {
    const std::lock_guard lock(notes);
    expected_.erase(key);
    reported_.erase(key);
    whole_.erase(key);
  }
  if (error) throw Error("cannot remove " + path.string() + ": " + error.message());
  remove_empty_folders(path.parent_path());
}

void Hdf5Store::remove_empty_folders(fs::path folder) {
  for (; folder != root_; folder = folder.parent_path()) {
    if (::rmdir(folder.c_str()) != 0) break;  // it is not empty, mostly
  }
}

void Hdf5Store::remove_unfinished(const std::vector<std::string>& folders) {
  std::vector<fs::path> unfinished, emptied;
  visit_below(root_, [&](const fs::directory_entry& entry) {
    const std::string name = entry.path().filename().string();
    if (name.find(".h5.") != name.npos && name.ends_with(".tmp"))
      unfinished.push_back(entry.path());
    return true;
  });
  std::error_code error;
  for (const fs::path& path : unfinished) {
    if (!fs::remove(path, error) && error)
      throw Error("cannot remove " + path.string() + ": " + error.message());
    emptied.push_back(path.parent_path());
  }
  // Also where a writer was killed before its file was there.
  for (const std::string& folder : folders) {
    emptied.push_back(root_ / folder);
    visit_below(root_ / folder, [&](const fs::directory_entry& entry) {
      if (entry.is_directory() && !entry.is_symlink()) emptied.push_back(entry.path());
      return true;
    });
  }
  for (const fs::path& folder : emptied) remove_empty_folders(folder);
}

}  // namespace roundhouse
