#include "pipeline/run/hdf5_store.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <hdf5.h>
#include <sys/resource.h>
#include <unistd.h>

#include <chrono>
#include <csignal>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <functional>
#include <thread>

#include "base/error.h"
#include "base/file.h"
#include "base/hash.h"
#include "base/random.h"
#include "tests/base/temporary_folder.h"
#include "tests/support/memory_store.h"

namespace roundhouse {
namespace {

namespace fs = std::filesystem;
using testing::HasSubstr;

HostTensor tensor_of(DType type, Shape shape, std::uint64_t seed) {
  HostTensor tensor(type, std::move(shape));
  Random random(seed);
  for (std::byte& byte : tensor.bytes()) byte = static_cast<std::byte>(random.next());
  return tensor;
}

// One of each type, and every kind of shape.
Record sample_record() {
  Record record;
  record.tensors["f32"] = tensor_of(DType::kF32, {3, 5}, 1);
  record.tensors["f16"] = tensor_of(DType::kF16, {7}, 2);
  record.tensors["bf16"] = tensor_of(DType::kBF16, {2, 2, 2}, 3);
  record.tensors["u8"] = tensor_of(DType::kU8, {1000}, 4);
  record.tensors["i32"] = tensor_of(DType::kI32, {4, 1}, 5);
  record.tensors["i64"] = tensor_of(DType::kI64, {3}, 6);
  record.tensors["u32"] = tensor_of(DType::kU32, {2, 3}, 7);
  record.tensors["a.name.with.dots"] = tensor_of(DType::kU8, {1}, 8);
  record.tensors["scalar"] = tensor_of(DType::kF32, {}, 9);
  record.tensors["empty"] = HostTensor(DType::kF16, {0, 12});
  record.attributes = {{"version", 1}, {"text", "ü \" \n"}, {"list", {1, 2.5, nullptr}}};
  return record;
}

void expect_equal(const Record& a, const Record& b) {
  EXPECT_EQ(a.attributes, b.attributes);
  ASSERT_EQ(a.tensors.size(), b.tensors.size());
  for (const auto& [name, tensor] : a.tensors) {
    ASSERT_TRUE(b.tensors.contains(name)) << name;
    const HostTensor& other = b.tensors.at(name);
    EXPECT_EQ(tensor.type(), other.type()) << name;
    EXPECT_EQ(tensor.shape(), other.shape()) << name;
    EXPECT_TRUE(std::ranges::equal(tensor.bytes(), other.bytes())) << name;
  }
}

std::string slurp(const fs::path& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}
void spill(const fs::path& path, const std::string& bytes) {
  std::ofstream(path, std::ios::binary | std::ios::trunc) << bytes;
}

// What every store promises, and how a test makes it fail.
struct StoreUnderTest {
  virtual ~StoreUnderTest() = default;
  virtual RunStore& store() = 0;
  virtual void damage(const std::string& key) = 0;
  virtual void let_writes_fail(bool fail) = 0;
};

class MemoryStoreUnderTest final : public StoreUnderTest {
 public:
  RunStore& store() override { return store_; }
  void damage(const std::string& key) override { store_.damage(key); }
  void let_writes_fail(bool fail) override { store_.fail_at_write(fail ? 1 : 0); }

 private:
  MemoryStore store_;
};

// While it lives files of this process may not grow beyond some bytes: a disk that fills up.
class FileSizeLimit {
 public:
  explicit FileSizeLimit(rlim_t bytes) {
    getrlimit(RLIMIT_FSIZE, &before_);
    signal_ = std::signal(SIGXFSZ, SIG_IGN);
    const rlimit limit{bytes, before_.rlim_max};
    setrlimit(RLIMIT_FSIZE, &limit);
  }
  ~FileSizeLimit() {
    setrlimit(RLIMIT_FSIZE, &before_);
    std::signal(SIGXFSZ, signal_);
  }
  FileSizeLimit(const FileSizeLimit&) = delete;
  FileSizeLimit& operator=(const FileSizeLimit&) = delete;

 private:
  rlimit before_{};
  void (*signal_)(int) = nullptr;
};

class Hdf5StoreUnderTest final : public StoreUnderTest {
 public:
  RunStore& store() override { return store_; }
  void damage(const std::string& key) override {
    const fs::path path = store_.path_of(key);
    std::string bytes = slurp(path);
    bytes[bytes.size() / 2] ^= 1;
    spill(path, bytes);
  }
  void let_writes_fail(bool fail) override {
    if (fail) {
      limit_.emplace(1000);
    } else {
      limit_.reset();
    }
  }

 private:
  TemporaryFolder folder_;
  Hdf5Store store_{folder_.path() / "run"};
  std::optional<FileSizeLimit> limit_;
};

using MakeStore = std::function<std::unique_ptr<StoreUnderTest>()>;
struct NamedStore {
  const char* name;
  MakeStore make;
};

class RunStoreTest : public testing::TestWithParam<NamedStore> {
 protected:
  RunStoreTest() : world_(GetParam().make()), store_(world_->store()) {
    store_.on_damage = [this](const std::string& key, const std::string&) {
      reported_.push_back(key);
    };
  }
  std::unique_ptr<StoreUnderTest> world_;
  RunStore& store_;
  std::vector<std::string> reported_;
};

TEST_P(RunStoreTest, HasNothingAtFirst) {
  EXPECT_FALSE(store_.has("calibration"));
  EXPECT_FALSE(store_.load("calibration"));
  store_.remove("calibration");
  EXPECT_TRUE(reported_.empty());
}

TEST_P(RunStoreTest, GivesBackWhatWasCommitted) {
  const Record record = sample_record();
  store_.commit("recipes/rtn-w4g128/block-0007", record);
  EXPECT_TRUE(store_.has("recipes/rtn-w4g128/block-0007"));
  EXPECT_FALSE(store_.has("recipes/rtn-w4g128/block-0008"));
  const std::optional<Record> loaded = store_.load("recipes/rtn-w4g128/block-0007");
  ASSERT_TRUE(loaded);
  expect_equal(record, *loaded);
}

TEST_P(RunStoreTest, AnEmptyRecordIsARecord) {
  store_.commit("calibration", {});
  const std::optional<Record> loaded = store_.load("calibration");
  ASSERT_TRUE(loaded);
  EXPECT_TRUE(loaded->tensors.empty());
  EXPECT_TRUE(loaded->attributes.is_null());
}

TEST_P(RunStoreTest, ACommitReplacesAndARemoveRemoves) {
  store_.commit("calibration", sample_record());
  Record other;
  other.attributes = "other";
  store_.commit("calibration", other);
  expect_equal(other, store_.load("calibration").value());
  store_.remove("calibration");
  EXPECT_FALSE(store_.has("calibration"));
}

TEST_P(RunStoreTest, DamageCountsAsNoneIsReportedOnceAndCanBeCommittedAnew) {
  store_.commit("calibration", sample_record());
  world_->damage("calibration");
  EXPECT_FALSE(store_.whole("calibration"));
  EXPECT_FALSE(store_.known_whole("calibration"));
  EXPECT_FALSE(store_.load("calibration"));
  EXPECT_EQ(reported_, std::vector<std::string>{"calibration"});
  store_.commit("calibration", sample_record());
  EXPECT_TRUE(store_.has("calibration"));
  world_->damage("calibration");
  EXPECT_FALSE(store_.load("calibration"));
  EXPECT_EQ(reported_.size(), 2u) << "another damage is another report";
}

TEST_P(RunStoreTest, AFailedCommitLeavesTheOldRecord) {
  store_.commit("calibration", sample_record());
  Record other = sample_record();
  other.attributes = "other";
  world_->let_writes_fail(true);
  EXPECT_THROW(store_.commit("calibration", other), Error);
  EXPECT_THROW(store_.commit("recipes/new/block-0000", other), Error);
  world_->let_writes_fail(false);
  expect_equal(sample_record(), store_.load("calibration").value());
  EXPECT_FALSE(store_.has("recipes/new/block-0000"));
  EXPECT_TRUE(reported_.empty());
  store_.commit("calibration", other);
  expect_equal(other, store_.load("calibration").value());
}

INSTANTIATE_TEST_SUITE_P(
    Stores, RunStoreTest,
    testing::Values(NamedStore{"memory", [] { return std::make_unique<MemoryStoreUnderTest>(); }},
                    NamedStore{"hdf5", [] { return std::make_unique<Hdf5StoreUnderTest>(); }}),
    [](const auto& store) { return store.param.name; });

class Hdf5StoreTest : public testing::Test {
 protected:
  Hdf5StoreTest() {
    store_.on_damage = [this](const std::string&, const std::string& why) { why_ = why; };
  }
  // Whether it still counts as a record.
  bool loads(const std::string& bytes) {
    why_.clear();
    spill(path_, bytes);
    store_.remove("nothing");
    Hdf5Store fresh(folder_.path());
    fresh.on_damage = store_.on_damage;
    const bool there = fresh.whole("record");
    EXPECT_EQ(fresh.load("record").has_value(), there);
    EXPECT_EQ(why_.empty(), there);
    return there;
  }
  // A right seal around any HDF5 content.
  static std::string sealed(const std::string& content) {
    const std::string head = "roundhouse-record 2\nkey record\nidentity none\nbytes " +
                             std::to_string(content.size()) + "\n";
    std::string block = head + "xxh3-128 " + xxh3_hex(head + content) + "\n";
    block.resize(512, '\0');
    return block + content;
  }
  // What HDF5 makes of a file with our user block, without the block.
  std::string hdf5_content(const std::function<void(hid_t)>& fill) const {
    const fs::path path = folder_.path() / "made.h5";
    const hid_t creation = H5Pcreate(H5P_FILE_CREATE);
    H5Pset_userblock(creation, 512);
    const hid_t file = H5Fcreate(path.c_str(), H5F_ACC_TRUNC, creation, H5P_DEFAULT);
    fill(file);
    H5Fclose(file);
    H5Pclose(creation);
    return slurp(path).substr(512);
  }
  static void add_attributes(hid_t file, const std::string& text) {
    const hid_t type = H5Tcopy(H5T_C_S1);
    H5Tset_size(type, text.size());
    const hid_t space = H5Screate(H5S_SCALAR);
    const hid_t attribute = H5Acreate2(file, "attributes", type, space, H5P_DEFAULT, H5P_DEFAULT);
    H5Awrite(attribute, type, text.data());
    H5Aclose(attribute);
    H5Sclose(space);
    H5Tclose(type);
  }
  static void add_dataset(hid_t file, const char* name, hid_t type, std::vector<hsize_t> dims,
                          hid_t creation = H5P_DEFAULT) {
    const hid_t space = H5Screate_simple(static_cast<int>(dims.size()), dims.data(), nullptr);
    const hid_t dataset = H5Dcreate2(file, name, type, space, H5P_DEFAULT, creation, H5P_DEFAULT);
    ASSERT_GE(dataset, 0);
    H5Dclose(dataset);
    H5Sclose(space);
  }

  TemporaryFolder folder_;
  Hdf5Store store_{folder_.path()};
  fs::path path_ = folder_.path() / "record.h5";
  std::string why_;
};

TEST_F(Hdf5StoreTest, EqualRecordsMakeEqualFiles) {
  store_.commit("record", sample_record());
  const std::string first = slurp(path_);
  ::sleep(1);  // HDF5's own time stamps count seconds
  Record stale;
  stale.tensors["x"] = tensor_of(DType::kU8, {1 << 20}, 1);
  store_.commit("record", stale);
  store_.commit("record", sample_record());
  EXPECT_EQ(slurp(path_), first);
  EXPECT_TRUE(fs::exists(path_));
  EXPECT_FALSE(fs::exists(path_.string() + ".tmp"));
}

// Another rank has written it, and this machine sees it late.
TEST_F(Hdf5StoreTest, WaitsForARecordThatItWasToldOf) {
  store_.commit("a/record", sample_record());
  const fs::path path = store_.path_of("a/record"), aside = folder_.path() / "aside";
  const std::uint64_t bytes = store_.bytes("a/record");
  EXPECT_EQ(bytes, fs::file_size(path));
  fs::rename(path, aside);
  EXPECT_EQ(store_.bytes("a/record"), 0u);
  EXPECT_FALSE(store_.load("a/record"));
  store_.expect("a/record", bytes);
  std::thread other([&] {
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
    fs::rename(aside, path);
  });
  EXPECT_TRUE(store_.load("a/record"));
  other.join();
  store_.expect("a/record", bytes);
  store_.remove("a/record");
  EXPECT_FALSE(store_.load("a/record")) << "its own word counts more";
}

TEST_F(Hdf5StoreTest, ListsKeysAndLeavesNoEmptyFolders) {
  for (const char* key : {"a/b/2", "a/b/1", "a/c", "ab/d"}) store_.commit(key, sample_record());
  EXPECT_EQ(store_.keys("a"), (std::vector<std::string>{"a/b/1", "a/b/2", "a/c"}));
  EXPECT_TRUE(store_.keys("nowhere").empty());
  store_.remove("a/b/1");
  EXPECT_TRUE(fs::exists(folder_.path() / "a" / "b"));
  store_.remove("a/b/2");
  EXPECT_FALSE(fs::exists(folder_.path() / "a" / "b"));
  store_.remove("a/c");
  store_.remove("ab/d");
  EXPECT_TRUE(fs::is_empty(folder_.path()));
}

TEST_F(Hdf5StoreTest, WhatKilledWritersHaveLeftGoes) {
  store_.commit("a/whole", sample_record());
  const std::string whole = slurp(store_.path_of("a/whole"));
  for (const char* left : {"a/whole.h5.tmp", "a/b/c/part.h5.tmp", "a/b/part.h5.rank-3.tmp"}) {
    fs::create_directories((folder_.path() / left).parent_path());
    std::ofstream(folder_.path() / left) << "half of it";
  }
  for (const char* folder : {"d/e/f", "export/partial"})  // killed before there was a file
    fs::create_directories(folder_.path() / folder);
  std::ofstream(folder_.path() / "export.tmp") << "somebody else's";
  store_.remove_unfinished({"d", "not-there"});
  EXPECT_EQ(store_.keys(""), (std::vector<std::string>{"a/whole"}));
  EXPECT_EQ(slurp(store_.path_of("a/whole")), whole);
  EXPECT_FALSE(fs::exists(folder_.path() / "a/whole.h5.tmp"));
  EXPECT_FALSE(fs::exists(folder_.path() / "a/b")) << "nothing is left in it";
  EXPECT_FALSE(fs::exists(folder_.path() / "d"));
  EXPECT_TRUE(fs::exists(folder_.path() / "export/partial")) << "somebody else's";
  EXPECT_TRUE(fs::exists(folder_.path() / "export.tmp"));
}

TEST_F(Hdf5StoreTest, TheSealSaysWhatTheHeaderSays) {
  store_.set_identity("record", "00ff");
  store_.commit("record", sample_record());
  const std::string bytes = slurp(path_);
  const std::string head = "roundhouse-record 2\nkey record\nidentity 00ff\nbytes " +
                           std::to_string(bytes.size() - 512) + "\n";
  EXPECT_EQ(std::string(bytes.c_str()),
            head + "xxh3-128 " + xxh3_hex(head + bytes.substr(512)) + "\n");
  EXPECT_EQ(store_.check("record"), "");
  EXPECT_EQ(store_.check("another"), "missing");
  EXPECT_EQ(why_, "") << "a check tells nobody";
}

TEST_F(Hdf5StoreTest, ACopyUnderAnotherKeyIsDamage) {
  store_.commit("recipes/a/block-0000", sample_record());
  store_.commit("recipes/a/block-0001", {});
  fs::copy_file(store_.path_of("recipes/a/block-0000"), store_.path_of("recipes/a/block-0001"),
                fs::copy_options::overwrite_existing);
  EXPECT_TRUE(store_.has("recipes/a/block-0000"));
  EXPECT_FALSE(store_.has("recipes/a/block-0001"));
  EXPECT_EQ(why_, "it is a copy of recipes/a/block-0000");
}

TEST_F(Hdf5StoreTest, ARecordOfTheFirstVersionCountsAsDamaged) {
  std::string old = "roundhouse-record 1\nidentity none\nbytes 3\n";
  old += "xxh3-128 " + xxh3_hex(old + "abc") + "\n";
  old.resize(512, '\0');
  EXPECT_FALSE(loads(old + "abc"));
  EXPECT_EQ(why_, "was written by an earlier version");
}

TEST_F(Hdf5StoreTest, AttributesAreReadWithoutTheTensors) {
  Record record = sample_record();
  record.tensors["large"] = tensor_of(DType::kU8, {1 << 20}, 1);
  store_.commit("record", record);
  EXPECT_TRUE(store_.known_whole("record"));
  std::string bytes = slurp(path_);
  bytes[bytes.size() / 2] ^= 1;
  spill(path_, bytes);
  Hdf5Store another(folder_.path());
  std::string why;
  another.on_damage = [&](const std::string&, const std::string& what) { why = what; };
  EXPECT_FALSE(another.known_whole("record"));
  EXPECT_EQ(another.attributes("record"), record.attributes);
  EXPECT_FALSE(another.known_whole("record")) << "its tensors were not looked at";
  EXPECT_EQ(why, "");
  EXPECT_FALSE(another.whole("record"));
  EXPECT_EQ(why, "its content does not match its hash");
  store_.commit("record", record);
  EXPECT_TRUE(another.whole("record"));
  EXPECT_TRUE(another.known_whole("record"));
}

// HDF5's own sums find what the seal's hash would.
TEST_F(Hdf5StoreTest, AttributesOfADamagedFileAreRightOrNone) {
  for (const std::size_t length :
       {10u, 100'000u}) {  // in the header of the root group, and outside
    Record record;
    record.tensors["t"] = tensor_of(DType::kF16, {8}, 1);
    record.attributes = {{"made_of", std::string(length, 'x')}};
    store_.commit("record", record);
    const std::string whole = slurp(path_);
    int none = 0;
    for (std::size_t at = 0; at < whole.size(); at += length == 10 ? 1 : 53) {
      std::string bytes = whole;
      bytes[at] = static_cast<char>(bytes[at] ^ (1 << (at % 8)));
      spill(path_, bytes);
      const auto attributes = store_.attributes("record");
      if (!attributes) ++none;
      ASSERT_TRUE(!attributes || *attributes == record.attributes) << "byte " << at;
    }
    EXPECT_GT(none, 100);
  }
}

TEST_F(Hdf5StoreTest, EveryTruncationIsFound) {
  store_.commit("record", sample_record());
  const std::string whole = slurp(path_);
  for (std::size_t length = 0; length < whole.size(); length += length < 600 ? 1 : 97) {
    ASSERT_FALSE(loads(whole.substr(0, length))) << length;
  }
  EXPECT_FALSE(loads(whole.substr(0, whole.size() - 1)));
  EXPECT_FALSE(loads(whole + '\0'));
  EXPECT_FALSE(loads(whole + whole));
  EXPECT_TRUE(loads(whole));
}

TEST_F(Hdf5StoreTest, EveryFlippedBitIsFound) {
  store_.commit("record", sample_record());
  const std::string whole = slurp(path_);
  Random random(1);
  for (int round = 0; round < 600; ++round) {
    std::string bytes = whole;
    const std::size_t at =
        round < 512 ? static_cast<std::size_t>(round) : random.below(bytes.size());
    bytes[at] = static_cast<char>(bytes[at] ^ (1 << random.below(8)));
    ASSERT_FALSE(loads(bytes)) << "byte " << at;
    ASSERT_NE(store_.check("record"), "") << "byte " << at;
  }
}

TEST_F(Hdf5StoreTest, RightSealsAroundWrongContentAreDamage) {
  EXPECT_TRUE(loads(sealed(hdf5_content([](hid_t file) { add_attributes(file, "{}"); }))));
  EXPECT_TRUE(loads(sealed(hdf5_content([](hid_t file) {
    add_attributes(file, "{}");
    // Space must be there, or the dataset claims what the file does not hold.
    const hid_t creation = H5Pcreate(H5P_DATASET_CREATE);
    H5Pset_alloc_time(creation, H5D_ALLOC_TIME_EARLY);
    add_dataset(file, "x", H5T_IEEE_F32LE, {4, 4}, creation);
    H5Pclose(creation);
  }))));

  const std::function<void(hid_t)> wrong[] = {
      [](hid_t) {},
      [](hid_t file) { add_attributes(file, "{not json"); },
      [](hid_t file) {  // attributes of another type
        const hid_t space = H5Screate(H5S_SCALAR);
        H5Aclose(H5Acreate2(file, "attributes", H5T_NATIVE_INT, space, H5P_DEFAULT, H5P_DEFAULT));
        H5Sclose(space);
      },
      [](hid_t file) {  // attributes of variable length
        const hid_t type = H5Tcopy(H5T_C_S1);
        H5Tset_size(type, H5T_VARIABLE);
        const hid_t space = H5Screate(H5S_SCALAR);
        const hid_t attribute =
            H5Acreate2(file, "attributes", type, space, H5P_DEFAULT, H5P_DEFAULT);
        const char* text = "{}";
        H5Awrite(attribute, type, &text);
        H5Aclose(attribute);
        H5Sclose(space);
        H5Tclose(type);
      },
      [](hid_t file) {  // a group where a tensor should be
        add_attributes(file, "{}");
        H5Gclose(H5Gcreate2(file, "group", H5P_DEFAULT, H5P_DEFAULT, H5P_DEFAULT));
      },
      [](hid_t file) {
        add_attributes(file, "{}");
        H5Lcreate_soft("/etc", file, "soft", H5P_DEFAULT, H5P_DEFAULT);
      },
      [](hid_t file) {
        add_attributes(file, "{}");
        H5Lcreate_external("/etc/passwd", "/x", file, "external", H5P_DEFAULT, H5P_DEFAULT);
      },
      [](hid_t file) {  // bytes in another file
        add_attributes(file, "{}");
        const hid_t creation = H5Pcreate(H5P_DATASET_CREATE);
        H5Pset_external(creation, "/etc/passwd", 0, 16);
        add_dataset(file, "x", H5T_STD_U8LE, {16}, creation);
        H5Pclose(creation);
      },
      [](hid_t file) {  // more than any memory holds
        add_attributes(file, "{}");
        add_dataset(file, "x", H5T_STD_U8LE, {hsize_t{1} << 40, hsize_t{1} << 20});
      },
      [](hid_t file) {  // a size whose bytes wrap around
        add_attributes(file, "{}");
        add_dataset(file, "x", H5T_IEEE_F32LE, {hsize_t{1} << 31, hsize_t{1} << 30});
      },
      [](hid_t file) {  // no space was ever given to it
        add_attributes(file, "{}");
        add_dataset(file, "x", H5T_STD_U8LE, {16});
      },
      [](hid_t file) {  // a type that we do not know
        add_attributes(file, "{}");
        add_dataset(file, "x", H5T_IEEE_F64BE, {1});
      },
      [](hid_t file) {  // chunks
        add_attributes(file, "{}");
        const hid_t creation = H5Pcreate(H5P_DATASET_CREATE);
        const hsize_t chunk = 4;
        H5Pset_chunk(creation, 1, &chunk);
        H5Pset_deflate(creation, 1);
        add_dataset(file, "x", H5T_STD_U8LE, {16}, creation);
        H5Pclose(creation);
      },
      [](hid_t file) {  // no shape
        add_attributes(file, "{}");
        const hid_t space = H5Screate(H5S_NULL);
        H5Dclose(H5Dcreate2(file, "x", H5T_STD_U8LE, space, H5P_DEFAULT, H5P_DEFAULT, H5P_DEFAULT));
        H5Sclose(space);
      },
  };
  for (const auto& fill : wrong) {
    EXPECT_FALSE(loads(sealed(hdf5_content(fill)))) << "case " << &fill - wrong;
    EXPECT_NE(why_, "");
  }
  EXPECT_FALSE(loads(sealed("")));
  EXPECT_FALSE(loads(sealed(std::string(1000, 'x'))));
}

TEST_F(Hdf5StoreTest, SharedStorageCannotClaimMoreThanTheFile) {
  EXPECT_FALSE(loads(sealed(hdf5_content([](hid_t file) {
    add_attributes(file, "{}");
    const hid_t creation = H5Pcreate(H5P_DATASET_CREATE);
    H5Pset_alloc_time(creation, H5D_ALLOC_TIME_EARLY);
    add_dataset(file, "x", H5T_STD_U8LE, {100000}, creation);
    H5Pclose(creation);
    for (int i = 0; i < 50; ++i) {  // fifty names for one dataset
      H5Lcreate_hard(file, "x", file, ("y" + std::to_string(i)).c_str(), H5P_DEFAULT, H5P_DEFAULT);
    }
  }))));
}

TEST_F(Hdf5StoreTest, AnotherIdentityCountsAsDamage) {
  store_.set_identity("recipes/a", "aa");
  store_.set_identity("recipes/a-b", "bb");
  store_.set_identity("recipes/a/special", "cc");
  const auto identity_line = [&](const std::string& key) {
    store_.commit(key, {});
    const std::string bytes = slurp(store_.path_of(key));
    const std::size_t begin = bytes.find("identity ");
    return bytes.substr(begin, bytes.find('\n', begin) - begin);
  };
  EXPECT_EQ(identity_line("recipes/a/block-0000"), "identity aa");
  EXPECT_EQ(identity_line("recipes/a-b/block-0000"), "identity bb") << "a is no folder of a-b";
  EXPECT_EQ(identity_line("recipes/a/special/x"), "identity cc");
  EXPECT_EQ(identity_line("recipes/c"), "identity none");

  EXPECT_TRUE(store_.has("recipes/a/block-0000"));
  store_.set_identity("recipes/a", "dd");
  EXPECT_FALSE(store_.has("recipes/a/block-0000"));
  EXPECT_EQ(why_, "belongs to another configuration");
  EXPECT_EQ(Hdf5Store(folder_.path()).check("recipes/a/block-0000"), "")
      << "it is whole all the same";
}

TEST_F(Hdf5StoreTest, KeysStayBelowTheRoot) {
  for (const char* key :
       {"", "/", "/etc/x", "..", "../x", "a/../b", "a//b", "a/", ".hidden", "a b", "a\nb"}) {
    EXPECT_THROW(store_.commit(key, {}), Error) << key;
    EXPECT_THROW(store_.load(key), Error) << key;
    EXPECT_THROW(store_.remove(key), Error) << key;
  }
}

TEST_F(Hdf5StoreTest, AFullDiskSaysSoAtEveryStep) {
  store_.commit("record", sample_record());
  const std::string whole = slurp(path_);
  Record other = sample_record();
  other.attributes = "other";
  for (rlim_t limit = 0; limit < whole.size() - 100; limit += 331) {
    const FileSizeLimit full(limit);
    try {
      store_.commit("record", other);
      FAIL() << "it fits into " << limit;
    } catch (const Error& error) {
      EXPECT_THAT(error.what(), HasSubstr("cannot write " + path_.string()));
      EXPECT_THAT(error.what(), HasSubstr("File too large"));
    }
    ASSERT_EQ(slurp(path_), whole);
    ASSERT_FALSE(fs::exists(path_.string() + ".tmp"));
  }
}

TEST_F(Hdf5StoreTest, LongAttributesFit) {
  Record record;
  record.attributes["text"] = std::string(1 << 20, 'x');
  store_.commit("record", record);
  expect_equal(record, store_.load("record").value());
}

TEST_F(Hdf5StoreTest, WhatCannotBeReadAtAllIsAnError) {
  fs::create_directory(folder_.path() / "record.h5");
  EXPECT_FALSE(store_.has("record")) << "a folder is damage";
  if (::geteuid() == 0) GTEST_SKIP() << "root may read everything";
  store_.commit("closed", sample_record());
  fs::permissions(store_.path_of("closed"), fs::perms::none);
  EXPECT_THROW(store_.load("closed"), Error);
}

TEST_F(Hdf5StoreTest, OtherToolsReadIt) {
  if (std::system("python3 -c 'import h5py' 2> /dev/null") != 0) GTEST_SKIP() << "no h5py";
  Record record;
  record.tensors["half"] = HostTensor(DType::kF16, {2});
  record.tensors["half"].as<std::uint16_t>()[1] = float_to_half(1.5f);
  record.tensors["brain"] = HostTensor(DType::kBF16, {1});
  record.tensors["brain"].as<std::uint16_t>()[0] = float_to_bfloat16(-2.5f);
  record.attributes = {{"bits", 4}};
  store_.commit("record", record);
  const std::string program =
      "import h5py, json\n"
      "f = h5py.File('" +
      path_.string() +
      "', 'r')\n"
      "assert list(f['half']) == [0, 1.5] and f['half'].dtype == 'f2'\n"
      "assert list(f['brain']) == [-2.5]\n"
      "a = f.attrs['attributes']\n"
      "assert json.loads(a.decode() if isinstance(a, bytes) else a) == {'bits': 4}\n";
  spill(folder_.path() / "check.py", program);
  EXPECT_EQ(std::system(("python3 " + (folder_.path() / "check.py").string()).c_str()), 0);
}

}  // namespace
}  // namespace roundhouse
