// pytorch_model.bin: what PyTorch wrote (tests/golden/make_bin.py), and what somebody with other intentions might.
#include "model/checkpoint/pytorch_file.h"

#include <fstream>
#include <sstream>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/random.h"
#include "model/checkpoint/pickle.h"
#include "model/checkpoint/zip.h"
#include "tests/model/model_files.h"
#include "tests/source_folder.h"

namespace roundhouse {
namespace {

using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;

const std::filesystem::path kBin = source_folder() / "tests/golden/bin";

std::string read_bytes(const std::filesystem::path& path) {
  std::ostringstream text;
  text << std::ifstream(path, std::ios::binary).rdbuf();
  return text.str();
}

std::string little_endian(std::uint64_t value, int bytes) {
  std::string text;
  for (int i = 0; i < bytes; ++i) text += static_cast<char>(value >> (8 * i) & 0xff);
  return text;
}

// A ZIP archive of stored entries.
std::string zip(const std::vector<std::pair<std::string, std::string>>& entries) {
  std::string archive, directory;
  for (const auto& [name, data] : entries) {
    const std::string sizes = little_endian(data.size(), 4) + little_endian(data.size(), 4);
    const std::string lengths = little_endian(name.size(), 2) + little_endian(0, 2);
    // Version, flags, method, time, date, checksum.
    const std::string common = little_endian(20, 2) + std::string(12, '\0') + sizes + lengths;
    directory += "PK\1\2" + little_endian(20, 2) + common + std::string(10, '\0') +
                 little_endian(archive.size(), 4) + name;
    archive += "PK\3\4" + common + name + data;
  }
  return archive + directory + "PK\5\6" + std::string(4, '\0') + little_endian(entries.size(), 2) +
         little_endian(entries.size(), 2) + little_endian(directory.size(), 4) +
         little_endian(archive.size(), 4) + little_endian(0, 2);
}

std::string checkpoint_of(const std::string& pickle) {
  return zip({{"a/data.pkl", pickle}, {"a/data/0", std::string(24, '\x11')}});
}

// Pieces of pickles: a string, a call, the tensor with these numbers in the storage "0".
std::string text(const std::string& s) { return "X" + little_endian(s.size(), 4) + s; }
std::string number(std::int64_t n) {
  return "\x8a\x08" + little_endian(static_cast<std::uint64_t>(n), 8);
}
std::string tuple(const std::vector<std::int64_t>& numbers) {
  std::string items = "(";
  for (const std::int64_t n : numbers) items += number(n);
  return items + "t";
}
std::string storage(const std::string& type, const std::string& key, std::int64_t elements) {
  return "(" + text("storage") + "ctorch\n" + type + "\n" + text(key) + text("cpu") +
         number(elements) + "tQ";
}
std::string tensor(const std::string& from, std::int64_t offset,
                   const std::vector<std::int64_t>& shape,
                   const std::vector<std::int64_t>& strides) {
  return "ctorch._utils\n_rebuild_tensor_v2\n(" + from + number(offset) + tuple(shape) +
         tuple(strides) + "\x89" + "ccollections\nOrderedDict\n)RtR";
}
std::string dictionary(const std::string& value) { return "\x80\x02}" + text("w") + value + "s."; }

class PytorchFileTest : public testing::Test {
 protected:
  // What opening the file says, and looking at its tensors.
  std::string error_of_bytes(const std::string& bytes) {
    write_file(directory_ / "m.bin", bytes);
    return input_error_of([&] {
      const PytorchFile file(directory_ / "m.bin");
      for (const std::string& name : file.names()) (void)file.view(name);
    });
  }
  std::string error_of_pickle(const std::string& pickle) {
    return error_of_bytes(checkpoint_of(pickle));
  }
  std::string error_of_tensor(const std::string& value) {
    return error_of_pickle(dictionary(value));
  }
  // Works, or is an InputError that names the file and fits a line; nothing else.
  bool survives(const std::string& bytes) {
    const std::string message = error_of_bytes(bytes);
    if (message == "(no InputError)") return true;
    EXPECT_THAT(message, HasSubstr("m.bin"));
    EXPECT_EQ(message.find('\n'), message.npos) << message;
    return false;
  }
  TemporaryFolder directory_;
};

template <class T>
std::vector<T> values_of(const PytorchFile& file, const std::string& name) {
  const HostView view = file.view(name);
  std::vector<T> values(view.bytes.size() / sizeof(T));
  std::memcpy(values.data(), view.bytes.data(), view.bytes.size());
  return values;
}

TEST_F(PytorchFileTest, ReadsWhatPytorchWrote) {
  const PytorchFile file(kBin / "tensors.bin");
  EXPECT_EQ(file.names().size(), 16u);
  EXPECT_EQ(file.view("float32").type, DType::kF32);
  EXPECT_EQ(file.view("float32").shape, (Shape{2, 3}));
  EXPECT_THAT(values_of<float>(file, "float32"), ElementsAre(0, 1, 2, 3, 4, 5));
  EXPECT_EQ(file.view("float16").type, DType::kF16);
  EXPECT_THAT(values_of<std::uint16_t>(file, "float16"),
              ElementsAre(0, 0x3c00, 0x4000, 0x4200, 0x4400, 0x4500));
  EXPECT_EQ(file.view("bfloat16").type, DType::kBF16);
  EXPECT_THAT(values_of<std::uint16_t>(file, "bfloat16"),
              ElementsAre(0, 0x3f80, 0x4000, 0x4040, 0x4080));
  EXPECT_THAT(values_of<std::int64_t>(file, "int64"), ElementsAre(0, 1, 2));
  EXPECT_THAT(values_of<std::int32_t>(file, "int32"), ElementsAre(0, 1, 2));
  EXPECT_THAT(values_of<std::uint8_t>(file, "uint8"), ElementsAre(0, 1, 2));
  EXPECT_EQ(file.view("scalar").shape, Shape{});
  EXPECT_THAT(values_of<float>(file, "scalar"), ElementsAre(7));
  EXPECT_EQ(file.view("empty").shape, (Shape{0, 4}));
  EXPECT_THAT(values_of<float>(file, "first half"), ElementsAre(0, 1, 2, 3, 4));
  EXPECT_THAT(values_of<float>(file, "second half"), ElementsAre(5, 6, 7, 8, 9));
  EXPECT_EQ(file.view("ones").shape, (Shape{1, 1, 1}));
  EXPECT_THAT(values_of<float>(file, "ones"), ElementsAre(3));
}

TEST_F(PytorchFileTest, WhatCannotBeViewedIsRefusedWhereItIsLookedAt) {
  const PytorchFile file(kBin / "tensors.bin");
  const auto error_of = [&](const std::string& name) {
    return input_error_of([&] { (void)file.view(name); });
  };
  for (const std::string name : {"transposed", "every other", "expanded"}) {
    EXPECT_TRUE(file.has(name));
    EXPECT_THAT(error_of(name), AllOf(HasSubstr("tensors.bin"), HasSubstr("\"" + name + "\""),
                                      HasSubstr("not contiguous")));
  }
  EXPECT_THAT(error_of("float64"), HasSubstr("DoubleStorage is not supported"));
  EXPECT_THAT(error_of("bool"), HasSubstr("BoolStorage is not supported"));
  EXPECT_THAT(error_of("absent"), HasSubstr("no tensor \"absent\""));
}

TEST_F(PytorchFileTest, OldFormatIsRefusedWithAdvice) {
  EXPECT_THAT(input_error_of([] { PytorchFile file(kBin / "legacy.bin"); }),
              AllOf(HasSubstr("legacy.bin"), HasSubstr("before 1.6")));
}

TEST_F(PytorchFileTest, TheTestsOwnPicklesAreGood) {
  EXPECT_EQ(error_of_tensor(tensor(storage("FloatStorage", "0", 6), 0, {2, 3}, {3, 1})),
            "(no InputError)");
  EXPECT_EQ(error_of_tensor(tensor(storage("HalfStorage", "0", 12), 2, {5, 2}, {2, 1})),
            "(no InputError)");
}

TEST_F(PytorchFileTest, NothingIsCalled) {
  for (const auto& [module, name] :
       std::map<std::string, std::string>{{"os", "system"},
                                          {"builtins", "eval"},
                                          {"torch", "load"},
                                          {"torch._utils", "_rebuild_sparse_tensor"},
                                          {"torch._utils", "_rebuild_tensor_v2\r"},
                                          {"collections", "Counter"}}) {
    EXPECT_THAT(
        error_of_pickle("\x80\x02"
                        "c" +
                        module + "\n" + name + "\n(" + text("true") + "tR."),
        AllOf(HasSubstr("m.bin: data.pkl: byte 2"), HasSubstr(module), HasSubstr("not loaded")));
  }
  // The same by the opcode of protocol 4.
  EXPECT_THAT(
      error_of_pickle("\x80\x04" + text("os") + text("system") + "\x93" + text("true") + "\x85R."),
      HasSubstr("\"os.system\""));
}

TEST_F(PytorchFileTest, UnknownOpcodesAreNamed) {
  // INST, OBJ, NEWOBJ, EXT1, PERSID, REDUCE_EX's NEWOBJ_EX, DUP, INT, BYTEARRAY8
  for (const std::string opcode : {"i", "o", "\x81", "\x82", "P", "\x92", "2", "I", "\x96"}) {
    EXPECT_THAT(error_of_pickle("\x80\x02}" + opcode + "1\n1\n."),
                AllOf(HasSubstr("byte 3: opcode 0x"), HasSubstr("is not known")));
  }
}

TEST_F(PytorchFileTest, TensorsMustLieInsideTheirStorage) {
  constexpr std::int64_t kHuge = std::numeric_limits<std::int64_t>::max();
  const std::string six = storage("FloatStorage", "0", 6);
  const auto expect = [&](const std::string& value, const char* says) {
    EXPECT_THAT(error_of_tensor(value), AllOf(HasSubstr("m.bin: tensor \"w\""), HasSubstr(says)));
  };
  expect(tensor(six, 0, {7}, {1}), "outside its storage");
  expect(tensor(six, 1, {6}, {1}), "outside its storage");
  expect(tensor(six, -1, {6}, {1}), "outside its storage");
  expect(tensor(six, kHuge, {1}, {1}), "outside its storage");
  expect(tensor(six, kHuge, {0}, {1}), "outside its storage");
  expect(tensor(six, 0, {-6}, {1}), "shape");
  expect(tensor(six, 0, {kHuge, 3}, {3, 1}), "shape");
  expect(tensor(six, 0, {2, 3}, {1}), "shape");
  expect(tensor(six, 0, {3, 2}, {1, 3}), "not contiguous");
  expect(tensor(six, 0, {6}, {-1}), "not contiguous");
  expect(tensor(six, 0, {6}, {kHuge}), "not contiguous");
  expect(tensor(storage("FloatStorage", "0", 7), 0, {6}, {1}), "24 bytes");
  expect(tensor(storage("FloatStorage", "0", -6), 0, {6}, {1}), "24 bytes");
  expect(tensor(storage("LongStorage", "0", kHuge), 0, {6}, {1}), "24 bytes");
  expect(tensor(storage("FloatStorage", "1", 6), 0, {6}, {1}), "no entry data/\"1\"");
  expect(tensor(storage("FloatStorage", "../0", 6), 0, {6}, {1}), "no entry");
  EXPECT_EQ(error_of_tensor(tensor(six, 6, {0, kHuge, kHuge}, {0, 0, 0})), "(no InputError)");
}

TEST_F(PytorchFileTest, PicklesThatLeaveNoDictionaryOfTensors) {
  const auto expect = [&](const std::string& pickle, const char* says) {
    EXPECT_THAT(error_of_pickle(pickle),
                AllOf(HasSubstr("m.bin: data.pkl: byte"), HasSubstr(says)));
  };
  const std::string good = tensor(storage("FloatStorage", "0", 6), 0, {6}, {1});
  expect("", "cut off");
  expect("\x80\x02", "cut off");
  expect("\x80\x02.", "the stack is empty");
  expect("\x80\x02].", "not a dictionary");
  expect("\x80\x05}.", "protocol 5");
  expect(dictionary("K\1"), "\"w\" is not a tensor");
  expect(dictionary("}"), "\"w\" is not a tensor");
  expect("\x80\x02}K\1" + good + "s.", "not a string");
  expect("\x80\x02}" + text("w") + good + "s" + text("w") + good + "s.", "stands twice");
  expect("\x80\x02}(" + text("w") + "u.", "key without a value");
  expect("\x80\x02}u.", "no mark");
  expect("\x80\x02}(s.", "the stack is empty");
  expect("\x80\x02]" + text("w") + good + "s.", "not a dictionary");
  expect("\x80\x02h\1.", "nothing was remembered");
  expect("\x80\x02" + std::string("X\xff\xff\xff\xff", 5) + "a", "cut off");
  expect("\x80\x02X\1" + std::string(3, '\0') + "\xff.", "not UTF-8");
  expect("\x80\x02" + text(std::string(5000, 'x')) + ".", "string of 5000 bytes");
  expect("\x80\x02\x8a\x09" + std::string(9, '\1') + ".", "more than 64 bits");
  expect("\x80\x02]Q.", "persistent id");
  expect("\x80\x02(" + text("module") + "tQ.", "persistent id");
  expect("\x80\x02]]R.", "not a call");
  expect(
      "\x80\x02"
      "ccollections\nOrderedDict\n(K\1tR.",
      "unknown arguments");
  expect(
      "\x80\x02"
      "ctorch._utils\n_rebuild_tensor_v2\n(K\1K\1K\1K\1K\1K\1tR.",
      "unknown arguments");
  expect(
      "\x80\x02"
      "ctorch\nFloatStorage\n)R.",
      "unknown arguments");
  expect("\x80\x02}]b.", "not attributes");
  // Shapes of more dimensions than any tensor has, and lists in themselves.
  expect(dictionary(tensor(storage("FloatStorage", "0", 6), 0, std::vector<std::int64_t>(9, 1),
                           std::vector<std::int64_t>(9, 1))),
         "unknown arguments");
  expect("\x80\x02]q\1h\1a.", "not a dictionary");
  std::string deep = "\x80\x02)";
  for (int i = 0; i < 1'000'000; ++i) deep += "\x85";
  expect(deep + ".", "not a dictionary");
}

// A few bytes a name refer to one tensor again: what is copied for each has to be short, or 4 MB of pickle become gigabytes.
TEST_F(PytorchFileTest, ManyNamesOfOneTensorTakeLittleForEach) {
  const auto shared = [](const std::string& key, std::size_t dimensions, int names) {
    std::string pickle =
        "\x80\x02}(" + text("t") +
        tensor(storage("FloatStorage", key, 6), 0, std::vector<std::int64_t>(dimensions, 1),
               std::vector<std::int64_t>(dimensions, 1)) +
        "q\1";
    for (int i = 0; i < names; ++i) {
      const std::string name = std::to_string(i);
      pickle += "\x8c" + little_endian(name.size(), 1) + name + "h\1";
    }
    return pickle + "u.";
  };
  write_file(directory_ / "m.bin", checkpoint_of(shared("0", 8, 300'000)));
  EXPECT_EQ(PytorchFile(directory_ / "m.bin").names().size(), 300'001u);
  EXPECT_THAT(error_of_pickle(shared(std::string(65, '0'), 1, 1)), HasSubstr("persistent id"));
  EXPECT_THAT(error_of_pickle(shared("0", 9, 1)), HasSubstr("unknown arguments"));
}

TEST_F(PytorchFileTest, ArchivesThatAreNotPytorchs) {
  const std::string good = dictionary(tensor(storage("FloatStorage", "0", 6), 0, {6}, {1}));
  const std::pair<std::string, std::string> data{"a/data/0", std::string(24, '\0')};
  EXPECT_EQ(error_of_bytes(zip({{"a/data.pkl", good}, data})), "(no InputError)");
  EXPECT_THAT(error_of_bytes(""), HasSubstr("not a ZIP archive"));
  EXPECT_THAT(error_of_bytes(std::string(1000, 'x')), HasSubstr("not a ZIP archive"));
  EXPECT_THAT(error_of_bytes(zip({})), HasSubstr("without data.pkl"));
  EXPECT_THAT(error_of_bytes(zip({{"data.pkl", good}, data})), HasSubstr("without data.pkl"));
  EXPECT_THAT(error_of_bytes(zip({{"a/b/data.pkl", good}, data})), HasSubstr("without data.pkl"));
  EXPECT_THAT(error_of_bytes(zip({{"a/data.pkl", good}, {"b/data.pkl", good}, data})),
              HasSubstr("two entries data.pkl"));
  EXPECT_THAT(error_of_bytes(zip({{"a/data.pkl", good}, data, data})), HasSubstr("stands twice"));
  EXPECT_THAT(error_of_bytes(zip({{"a/data.pkl", good}, data, {"a/byteorder", "big"}})),
              HasSubstr("not little"));
  EXPECT_THAT(error_of_bytes(zip({{"a/data.pkl", std::string(5'000'000, '(')}, data})),
              HasSubstr("too large"));
  std::string compressed = zip({{"a/data.pkl", good}, data});
  compressed[compressed.find("PK\1\2") + 10] = 8;
  EXPECT_THAT(error_of_bytes(compressed), AllOf(HasSubstr("a/data.pkl"), HasSubstr("compressed")));
  std::string elsewhere = zip({{"a/data.pkl", good}, data});
  elsewhere[elsewhere.find("PK\1\2") + 42] = 1;
  EXPECT_THAT(error_of_bytes(elsewhere), HasSubstr("no entry where the directory says"));
  std::string beyond = zip({{"a/data.pkl", good}, data});
  beyond[beyond.find("PK\1\2") + 44] = 1;
  EXPECT_THAT(error_of_bytes(beyond), HasSubstr("points beyond its end"));
}

TEST_F(PytorchFileTest, Zip64IsReadAsTheOldFormIs) {
  // Sizes and offset of the second entry, and the directory's place, in their 64-bit forms.
  const std::string name = "a/data/0", bytes = "1234";
  const std::string header = little_endian(45, 2) + std::string(12, '\0');
  const std::string in_64 = std::string(8, '\xff');
  const std::string field = little_endian(1, 2) + little_endian(24, 2) + little_endian(4, 8) +
                            little_endian(4, 8) + little_endian(0, 8);
  std::string archive = "PK\3\4" + header + in_64 + little_endian(name.size(), 2) +
                        little_endian(0, 2) + name + bytes;
  const std::size_t directory = archive.size();
  archive += "PK\1\2" + little_endian(45, 2) + header + in_64 + little_endian(name.size(), 2) +
             little_endian(field.size(), 2) + std::string(10, '\0') + std::string(4, '\xff') +
             name + field;
  const std::size_t end = archive.size();
  archive += "PK\6\6" + little_endian(44, 8) + std::string(12, '\0') + little_endian(1, 8) +
             little_endian(1, 8) + little_endian(end - directory, 8) + little_endian(directory, 8);
  archive += "PK\6\7" + std::string(4, '\0') + little_endian(end, 8) + little_endian(1, 4);
  archive += "PK\5\6" + std::string(4, '\0') + std::string(12, '\xff') + little_endian(0, 2);
  const auto entries = read_stored_zip(std::as_bytes(std::span(archive)), "file");
  ASSERT_EQ(entries.size(), 1u);
  EXPECT_EQ(std::string(reinterpret_cast<const char*>(entries.at(name).data()), 4), bytes);
}

TEST_F(PytorchFileTest, FilesCutOffAnywhereAreRefused) {
  for (const std::string& valid :
       {read_bytes(kBin / "tensors.bin"),
        checkpoint_of(dictionary(tensor(storage("FloatStorage", "0", 6), 0, {6}, {1})))}) {
    for (std::size_t length = 0; length < valid.size(); ++length) {
      ASSERT_FALSE(survives(valid.substr(0, length))) << length << " bytes";
    }
  }
}

TEST_F(PytorchFileTest, PicklesCutOffAnywhereAreRefused) {
  const std::string valid = dictionary(tensor(storage("FloatStorage", "0", 6), 0, {6}, {1}));
  for (std::size_t length = 0; length < valid.size(); ++length) {
    ASSERT_FALSE(survives(checkpoint_of(valid.substr(0, length)))) << length << " bytes";
  }
}

TEST_F(PytorchFileTest, ChangedBytesAreRefusedOrRead) {
  Random random(1);
  int refused = 0;
  for (const std::string& valid :
       {read_bytes(kBin / "tensors.bin"), read_bytes(kBin / "opt/pytorch_model.bin"),
        checkpoint_of(dictionary(tensor(storage("FloatStorage", "0", 6), 0, {6}, {1})))}) {
    ASSERT_GT(valid.size(), 300u);
    for (int i = 0; i < 1500; ++i) {
      std::string bytes = valid;
      for (std::uint64_t n = 1 + random.below(3); n > 0; --n) {
        bytes[random.below(bytes.size())] = static_cast<char>(random.below(256));
      }
      if (!survives(bytes)) ++refused;
    }
  }
  EXPECT_GT(refused, 100);
}

TEST_F(PytorchFileTest, EveryByteOfAPickleChanged) {
  const std::string valid = dictionary(tensor(storage("FloatStorage", "0", 6), 0, {6}, {1}));
  for (std::size_t i = 0; i < valid.size(); ++i) {
    for (const int value :
         {0x00, 0x01, 0x28, 0x2e, 0x52, 0x68, 0x71, 0x7d, 0x7f, 0x80, 0x86, 0xff}) {
      std::string pickle = valid;
      pickle[i] = static_cast<char>(value);
      (void)survives(checkpoint_of(pickle));
    }
  }
}

}  // namespace
}  // namespace roundhouse
