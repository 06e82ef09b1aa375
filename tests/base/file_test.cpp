#include "base/file.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <fstream>
#include <span>
#include <thread>

#include "base/error.h"
#include "base/hash.h"
#include "base/packed_file.h"
#include "tests/base/packed.h"

namespace roundhouse {
namespace {

namespace fs = std::filesystem;
using testing::HasSubstr;

class FileTest : public testing::Test {
 protected:
  void SetUp() override {
    std::string pattern = testing::TempDir() + "/roundhouse_file_XXXXXX";
    ASSERT_NE(::mkdtemp(pattern.data()), nullptr);
    folder_ = pattern;
  }
  void TearDown() override { fs::remove_all(folder_); }

  // Names in the folder: shows temporary files left behind.
  std::vector<std::string> names() const {
    std::vector<std::string> found;
    for (const auto& entry : fs::directory_iterator(folder_)) {
      found.push_back(entry.path().filename().string());
    }
    return found;
  }
  template <class Call>
  static std::string error_of(const Call& call) {
    try {
      call();
    } catch (const Error& e) {
      return e.what();
    }
    return "no error";
  }

  fs::path folder_;
};

TEST_F(FileTest, ReadsBackWhatItWroteAndReplacesIt) {
  const fs::path path = folder_ / "deep" / "er" / "file";
  const std::string text("a\0b\n", 4);
  write_text_atomically(path, text);
  EXPECT_EQ(read_text_file(path), text);
  write_text_atomically(path, "");
  EXPECT_EQ(read_text_file(path), "");
}

TEST_F(FileTest, WritesBesideTheWorkingDirectoryToo) {
  const fs::path before = fs::current_path();
  fs::current_path(folder_);
  write_text_atomically("plain", "x");
  fs::current_path(before);
  EXPECT_THAT(names(), testing::ElementsAre("plain"));
}

TEST_F(FileTest, ReadingSaysWhatIsWrongAndWhere) {
  const fs::path path = folder_ / "file";
  EXPECT_THAT(error_of([&] { read_text_file(path); }), HasSubstr(path.string()));
  EXPECT_THAT(error_of([&] { read_text_file(folder_); }), HasSubstr("is a directory"));
  write_text_atomically(path, "12345");
  EXPECT_EQ(read_text_file(path, 5), "12345");
  EXPECT_THAT(error_of([&] { read_text_file(path, 4); }), HasSubstr("5 bytes"));
  EXPECT_THROW(read_text_file(folder_ / "none"), InputError);
}

TEST_F(FileTest, ErrorsOfTheStandardLibraryBecomeOurs) {
  const auto said = [](const std::function<void()>& work) -> std::pair<std::string, std::string> {
    try {
      with_file_errors_named(work);
    } catch (const InputError& error) {
      return {"InputError", error.what()};
    } catch (const Error& error) {
      return {"Error", error.what()};
    }
    return {};
  };
  const std::filesystem::path file = folder_ / "a file";
  write_text_atomically(file, "x");
  EXPECT_THAT(said([&] { std::filesystem::create_directories(file / "below"); }),
              testing::Pair("InputError", testing::StartsWith("cannot create directories " +
                                                              (file / "below").string() +
                                                              ": Not a directory: ")));
  EXPECT_THAT(said([&] {
                throw std::filesystem::filesystem_error(
                    "cannot rename", "/a", "/b", std::error_code(EIO, std::generic_category()));
              }),
              testing::Pair("Error", "cannot rename /a and /b: Input/output error (errno 5)"));
  EXPECT_THAT(
      said([&] {
        throw std::filesystem::filesystem_error("directory iterator cannot open directory", "/a",
                                                std::error_code(EACCES, std::generic_category()));
      }),
      testing::Pair("InputError", testing::AllOf(testing::HasSubstr("/a: Permission denied"),
                                                 testing::HasSubstr("access"))));
  EXPECT_EQ(said([] {}).first, "");
}

TEST_F(FileTest, TheFactsAreThoseOfTheMappedFile) {
  const std::filesystem::path path = folder_ / "mapped", other = folder_ / "other";
  write_text_atomically(path, "before");
  const MappedFile mapped(path);
  write_text_atomically(other, "longer than before");
  std::filesystem::rename(other, path);
  EXPECT_EQ(mapped.facts().bytes, 6u);
  EXPECT_EQ(MappedFile(path).facts().bytes, 18u);
  EXPECT_GE(MappedFile(path).facts().changed, mapped.facts().changed);
  EXPECT_GT(mapped.facts().modified, 0);
}

TEST_F(FileTest, MapsAFileAndMovesTheMapping) {
  write_text_atomically(folder_ / "file", "mapped");
  MappedFile first(folder_ / "file");
  const MappedFile second(std::move(first));
  EXPECT_TRUE(first.bytes().empty());  // NOLINT: what a moved-from mapping promises
  ASSERT_EQ(second.bytes().size(), 6u);
  EXPECT_EQ(second.bytes()[0], std::byte{'m'});
  write_text_atomically(folder_ / "empty", "");
  EXPECT_TRUE(MappedFile(folder_ / "empty").bytes().empty());
  EXPECT_THROW(MappedFile(folder_ / "none"), InputError);
  EXPECT_THROW(MappedFile{folder_}, InputError);
}

TEST_F(FileTest, AFileThatIsCutShortWhileMappedIsAnErrorThatNamesIt) {
  const fs::path path = folder_ / "weights";
  write_text_atomically(path, std::string(100'000, 'x'));
  const auto read_behind_its_end = [&] {
    const MappedFile other(path);  // a neighbour
    const MappedFile mapped(path);
    fs::resize_file(path, 10);
    volatile std::byte last = mapped.bytes().back();
    (void)last;
  };
  EXPECT_EXIT(read_behind_its_end(), testing::ExitedWithCode(1),
              "cannot read .*/weights: it was cut short, or its disk failed");
}

TEST_F(FileTest, ReadsLines) {
  const fs::path path = folder_ / "file";
  const auto lines = [&](const std::string& text, std::uint64_t from = 0) {
    write_text_atomically(path, text);
    LineReader reader(path, from);
    std::vector<std::string> found;
    for (std::string line; reader.next(line);) found.push_back(line + (reader.ended() ? "" : "~"));
    return found;
  };
  using testing::ElementsAre;
  EXPECT_THAT(lines(""), ElementsAre());
  EXPECT_THAT(lines("a\n\nb"), ElementsAre("a", "", "b~"));
  EXPECT_THAT(lines("a\n\n", 1), ElementsAre("", ""));
  EXPECT_THAT(lines("a\n", 2), ElementsAre());
  // Longer than what is read at once, and with an end exactly there.
  const std::string longer(200'000, 'x'), part((std::size_t{1} << 16) - 1, 'y');
  EXPECT_THAT(lines(part + "\n" + longer + "\n" + part + "\n" + longer),
              ElementsAre(part, longer, part, longer + "~"));
}

// Whoever opened the pipe to read waited for a writer.
TEST_F(FileTest, WaitsForAFileThatAppearsLater) {
  const fs::path path = folder_ / "later" / "file";
  std::thread writer([&] {
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
    fs::create_directory(path.parent_path());
    std::ofstream(path) << "hal";
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
    std::ofstream(path) << "whole";
  });
  wait_until_visible(path, 5, std::chrono::seconds(60));
  EXPECT_EQ(read_text_file(path), "whole");
  writer.join();
}

TEST_F(FileTest, SaysWhatItSawInsteadOfAFileThatItWaitedFor) {
  const fs::path path = folder_ / "file";
  const auto wait = [&] { wait_until_visible(path, 5, std::chrono::milliseconds(20)); };
  EXPECT_THAT(error_of(wait), HasSubstr(path.string()));
  EXPECT_THAT(error_of(wait), HasSubstr("it is not in its folder here"));
  std::ofstream(path) << "longer";
  EXPECT_THAT(error_of(wait), HasSubstr("with 5 bytes"));
  EXPECT_THAT(error_of(wait), HasSubstr("it has 6 bytes here"));
}

TEST_F(FileTest, KnowsTheLengthOfAFile) {
  EXPECT_EQ(bytes_of_file(folder_ / "nowhere" / "file"), std::nullopt);
  EXPECT_EQ(bytes_of_file(folder_ / "file"), std::nullopt);
  std::ofstream(folder_ / "file") << "whole";
  EXPECT_EQ(bytes_of_file(folder_ / "file"), 5u);
}

TEST_F(FileTest, PipesAndDevicesAreRefusedAtOnce) {
  const fs::path pipe = folder_ / "pipe";
  ASSERT_EQ(::mkfifo(pipe.c_str(), 0666), 0);
  for (const fs::path& path : {pipe, fs::path("/dev/zero")}) {
    const std::string expected = path.string() + ": it is not a regular file";
    EXPECT_THAT(error_of([&] { read_text_file(path); }), HasSubstr(expected));
    EXPECT_THAT(error_of([&] { MappedFile file(path); }), HasSubstr(expected));
    EXPECT_THAT(error_of([&] { InputFile file(path); }), HasSubstr(expected));
    EXPECT_THAT(error_of([&] { LineReader file(path); }), HasSubstr(expected));
    EXPECT_THAT(error_of([&] { open_regular_file(path, O_RDWR | O_CREAT); }), HasSubstr(expected));
    EXPECT_THAT(error_of([&] { sha256_hex_of_file(path); }), HasSubstr(expected));
  }
}

TEST_F(FileTest, AFailingWriterLeavesTheOldContentAndNoTemporaryFile) {
  const fs::path path = folder_ / "file";
  write_text_atomically(path, "old");
  const std::string what = error_of([&] {
    write_atomically(path, [](const fs::path& temp) {
      std::ofstream(temp) << "half of the n";
      throw std::runtime_error("the reason");
    });
  });
  EXPECT_THAT(what, HasSubstr("the reason"));
  EXPECT_THAT(what, HasSubstr(path.string()));
  EXPECT_EQ(read_text_file(path), "old");
  EXPECT_THAT(names(), testing::ElementsAre("file"));
}

TEST_F(FileTest, ExceptionsThatAreNotErrorsPassThroughAndCleanUpToo) {
  const auto write = [](const fs::path& temp) {
    std::ofstream(temp) << "x";
    throw 42;
  };
  EXPECT_THROW(write_atomically(folder_ / "file", write), int);
  EXPECT_TRUE(names().empty());
  EXPECT_THROW(
      write_atomically(folder_ / "file", [](const fs::path&) { throw InputError("bad content"); }),
      InputError);
}

TEST_F(FileTest, AWriterThatWritesNothingIsAnError) {
  EXPECT_THROW(write_atomically(folder_ / "file", [](const fs::path&) {}), Error);
}

TEST_F(FileTest, ATemporaryFileOfAKilledRunIsReplaced) {
  std::ofstream(folder_ / "file.tmp") << "left behind";
  write_atomically(folder_ / "file", [](const fs::path& temp) {
    EXPECT_FALSE(fs::exists(temp));
    std::ofstream(temp) << "new";
  });
  EXPECT_EQ(read_text_file(folder_ / "file"), "new");
  EXPECT_THAT(names(), testing::ElementsAre("file"));
}

TEST_F(FileTest, WritersOfDifferentNamesDoNotMeet) {
  const auto write = [&](const fs::path& temp) {
    std::ofstream(temp) << "first";
    write_text_atomically(folder_ / "file", "second", "other");
    EXPECT_EQ(read_text_file(folder_ / "file"), "second");
  };
  write_atomically(folder_ / "file", write, "one");
  EXPECT_EQ(read_text_file(folder_ / "file"), "first") << "the last to end";
  EXPECT_THAT(names(), testing::ElementsAre("file"));
}

// As where ranks remove the last records of a folder in which another is about to write.
TEST_F(FileTest, AFolderThatGoesAndComesBackBeforeTheFileIsThereIsNoFault) {
  const fs::path folder = folder_ / "at-0002";
  int tries = 0;
  write_atomically(folder / "shard", [&](const fs::path& temp) {
    if (++tries <= 3) {
      ASSERT_EQ(::rmdir(folder.c_str()), 0);
      const bool opened = std::ofstream(temp).is_open();
      fs::create_directory(folder);
      ASSERT_FALSE(opened);
      throw Error("No such file or directory");
    }
    std::ofstream(temp) << "content";
  });
  EXPECT_EQ(tries, 4);
  EXPECT_EQ(read_text_file(folder / "shard"), "content");
}

TEST_F(FileTest, WritersAndRemoversOfFoldersDoNotMeet) {
  const fs::path inner = folder_ / "after-0001" / "stage";
  const auto write_and_remove = [&](const char* name) {
    return error_of([&] {
      for (int i = 0; i < 100; ++i) {
        write_text_atomically(inner / name, "content");
        fs::remove(inner / name);
        if (::rmdir(inner.c_str()) == 0) ::rmdir(inner.parent_path().c_str());
      }
    });
  };
  std::string other;
  std::thread thread([&] { other = write_and_remove("one"); });
  const std::string mine = write_and_remove("two");
  thread.join();
  EXPECT_EQ(mine, "no error");
  EXPECT_EQ(other, "no error");
}

// As where lanes share a record that none of them needs any longer. In memory, where thousands of times take no second.
TEST_F(FileTest, AFileThatIsRemovedAtOnceWithItsFolderIsNoFault) {
  std::string pattern = "/dev/shm/roundhouse_file_XXXXXX";
  if (::mkdtemp(pattern.data()) == nullptr) GTEST_SKIP() << "needs /dev/shm";
  const fs::path folder = fs::path(pattern) / "after-0001";
  std::atomic<bool> done = false;
  std::thread remover([&] {
    std::error_code ignored;
    while (!done) {
      if (fs::remove(folder / "shard", ignored)) ::rmdir(folder.c_str());
    }
  });
  const std::string mine = error_of([&] {
    for (int i = 0; i < 5000; ++i) write_text_atomically(folder / "shard", "content");
  });
  done = true;
  remover.join();
  fs::remove_all(pattern);
  EXPECT_EQ(mine, "no error");
}

TEST_F(FileTest, WhatIsBelowAFolderIsVisitedOnceAndAFolderBeforeWhatIsInIt) {
  for (const char* folder : {"a/b", "a/c", "empty"}) fs::create_directories(folder_ / folder);
  for (const char* file : {"a/b/1", "a/c/2", "3"}) std::ofstream(folder_ / file) << "x";
  fs::create_directory_symlink(folder_, folder_ / "a/loop");
  std::vector<std::string> seen;
  const auto visit = [&](const fs::directory_entry& entry) {
    seen.push_back(entry.path().lexically_relative(folder_).string());
    if (entry.path().filename() == "empty") fs::remove(entry.path());  // gone before it is listed
    return entry.path().filename() != "c";
  };
  visit_below(folder_, visit);
  EXPECT_THAT(seen,
              testing::UnorderedElementsAre("a", "a/b", "a/b/1", "a/c", "a/loop", "empty", "3"));
  const auto place = [&](const char* name) { return std::ranges::find(seen, name); };
  EXPECT_LT(place("a"), place("a/b"));
  EXPECT_LT(place("a/b"), place("a/b/1"));
  seen.clear();
  visit_below(folder_ / "not-there", visit);
  EXPECT_TRUE(seen.empty());
  EXPECT_THROW(visit_below(folder_ / "3", visit), fs::filesystem_error);
}

TEST_F(FileTest, ADirectoryInTheWayIsAnErrorThatLeavesNothing) {
  fs::create_directory(folder_ / "taken");
  EXPECT_THAT(error_of([&] { write_text_atomically(folder_ / "taken", "x"); }),
              HasSubstr((folder_ / "taken").string()));
  write_text_atomically(folder_ / "file", "x");
  EXPECT_THAT(error_of([&] { write_text_atomically(folder_ / "file" / "below", "x"); }),
              HasSubstr("cannot write"));
  EXPECT_THAT(names(), testing::UnorderedElementsAre("taken", "file"));
}

// Larger than what is unpacked at once.
TEST_F(FileTest, WhatIsPackedHasTheContentOfWhatIsNot) {
  std::string text;
  for (int i = 0; text.size() < 3'000'000; ++i)
    text += std::to_string(i) + (i % 7 == 0 ? "\n" : " ");
  const std::string half = text.substr(0, 1'234'567), rest = text.substr(1'234'567);
  const std::string skipped("\x50\x2a\x4d\x18\4\0\0\0abcd", 12);  // a frame without text
  const fs::path path = folder_ / "text";
  int ticks = 0;
  for (const auto& [packed, packing] :
       {std::pair(text, Packing::kNone),
        {gzip(text), Packing::kGzip},
        {zstd(text), Packing::kZstd},
        {gzip(half) + gzip("") + gzip(rest) + std::string(1000, '\0'), Packing::kGzip},
        {zstd(half) + skipped + zstd(rest), Packing::kZstd},
        {skipped + zstd(text), Packing::kZstd}}) {
    write_text_atomically(path, packed);
    EXPECT_EQ(xxh3_hex_of_content(path), xxh3_hex(text));
    const MappedContent content(path, [&] { ++ticks; });
    EXPECT_EQ(content.packing(), packing);
    EXPECT_TRUE(std::ranges::equal(content.bytes(), std::as_bytes(std::span(text))));
  }
  EXPECT_GE(ticks, 15) << "a part at a time";
  for (const std::string& nothing : {std::string(), gzip(""), zstd("")}) {
    write_text_atomically(path, nothing);
    EXPECT_TRUE(MappedContent(path, [] {}).bytes().empty());
  }
}

TEST_F(FileTest, DamagedPackedFilesAreNamed) {
  std::string text;
  for (int i = 0; i < 20'000; ++i) text += std::to_string(i * 7919);
  const fs::path path = folder_ / "text.x";
  const auto error = [&](const std::string& bytes) {
    write_text_atomically(path, bytes);
    return error_of([&] { (void)MappedContent(path, [] {}); });
  };
  for (const auto& [packed, name] : {std::pair(gzip(text), "gzip"), {zstd(text), "zstd"}}) {
    EXPECT_EQ(error(packed), "no error");
    for (const std::size_t bytes : {std::size_t{4}, packed.size() / 2, packed.size() - 1}) {
      EXPECT_THAT(error(packed.substr(0, bytes)),
                  testing::AllOf(HasSubstr("text.x: a "), HasSubstr(name), HasSubstr("cut short")))
          << bytes;
    }
    for (std::size_t at = 8; at < packed.size(); at += 997) {
      std::string damaged = packed;
      damaged[at] = static_cast<char>(damaged[at] ^ 0x55);
      const std::string what = error(damaged);
      EXPECT_THAT(what, testing::AnyOf("no error", HasSubstr("text.x: a ")));
    }
    EXPECT_THAT(error(packed + "and more"), HasSubstr("damaged"));
  }
  // The sum at the end of gzip's.
  std::string wrong = gzip(text);
  wrong[wrong.size() - 6] ^= 1;
  EXPECT_THAT(error(wrong), HasSubstr("text.x: a damaged gzip file"));
}

// Some hundred bytes that would fill a disk.
TEST_F(FileTest, WhatIsPackedBeyondAnyTextIsRefused) {
  const fs::path path = folder_ / "bomb";
  const std::string blank(100 << 20, ' ');
  for (const std::string& packed : {gzip(blank), zstd(blank)}) {
    write_text_atomically(path, packed);
    EXPECT_LT(most_unpacked(packed.size()), blank.size());
    EXPECT_THAT(error_of([&] { (void)xxh3_hex_of_content(path); }),
                testing::AllOf(HasSubstr("bomb: holds more than "), HasSubstr("unpack it")));
  }
}

TEST_F(FileTest, AFullDiskSaysSoAndKeepsTheOldContent) {
  const fs::path disk = folder_ / "disk";
  fs::create_directory(disk);
  if (::mount("tmpfs", disk.c_str(), "tmpfs", 0, "size=64k") != 0) {
    GTEST_SKIP() << "may not mount a small disk here";
  }
  const std::string large(1 << 20, 'x');
  write_text_atomically(disk / "file", "old");
  const std::string what = error_of([&] { write_text_atomically(disk / "file", large); });
  // The reason is lost on the way through a stream, as it is in some libraries.
  const std::string through_stream = error_of([&] {
    write_atomically(disk / "file", [&](const fs::path& temp) {
      std::ofstream out(temp);
      out << large << std::flush;
      if (!out) throw std::runtime_error("cannot write the data set");
    });
  });
  const std::string after = read_text_file(disk / "file");
  const auto entries = std::distance(fs::directory_iterator(disk), fs::directory_iterator());
  ::umount(disk.c_str());
  EXPECT_THAT(what, HasSubstr("disk full"));
  EXPECT_THAT(through_stream, HasSubstr("disk full"));
  EXPECT_EQ(after, "old");
  EXPECT_EQ(entries, 1);
}

}  // namespace
}  // namespace roundhouse
