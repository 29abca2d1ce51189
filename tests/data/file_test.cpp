#include "data/file.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <csignal>
#include <functional>

#include "core/error.h"
#include "tests/support/temporary_folder.h"

namespace {

/// What the system calls below do instead of their work: an errno, or 0 to go on.
struct Faults {
  std::function<int(std::size_t& bytes)> on_write;
  std::function<int()> on_fsync;
  std::function<int()> on_rename;
  int fsync_calls = 0;
};
Faults faults;

int injected(int error_number) {
  errno = error_number;
  return -1;
}

}  // namespace

// These stand before libc's for the whole program, so that FileWriter meets a failing disk.
extern "C" ssize_t write(int descriptor, const void* data, std::size_t bytes) {
  if (faults.on_write)
    if (const int error_number = faults.on_write(bytes)) return injected(error_number);
  return syscall(SYS_write, descriptor, data, bytes);
}
extern "C" int fsync(int descriptor) {
  ++faults.fsync_calls;
  if (faults.on_fsync)
    if (const int error_number = faults.on_fsync()) return injected(error_number);
  return static_cast<int>(syscall(SYS_fsync, descriptor));
}
extern "C" int rename(const char* from, const char* to) noexcept {
  if (faults.on_rename)
    if (const int error_number = faults.on_rename()) return injected(error_number);
  return static_cast<int>(syscall(SYS_renameat2, AT_FDCWD, from, AT_FDCWD, to, 0));
}

namespace jiboia {
namespace {

using testing::AllOf;
using testing::HasSubstr;

class FileTest : public testing::Test {
 protected:
  void SetUp() override { faults = {}; }
  void TearDown() override { faults = {}; }

  /// The message of the Io error that `action` must throw.
  static std::string io_error(const std::function<void()>& action) {
    try {
      action();
    } catch (const Error& error) {
      EXPECT_EQ(error.kind(), ErrorKind::kIo);
      return error.what();
    }
    ADD_FAILURE() << "no error was thrown";
    return "";
  }

  std::string contents(const std::string& name) const {
    return read_text_file(folder_ / name, 1 << 20);
  }
  std::vector<std::string> names() const {
    std::vector<std::string> result;
    for (const auto& entry : std::filesystem::directory_iterator(folder_.path()))
      result.push_back(entry.path().filename());
    std::sort(result.begin(), result.end());
    return result;
  }

  TemporaryFolder folder_;
};

TEST_F(FileTest, HashIsXxh3) {  // the published value of XXH3_64bits("", seed 0)
  EXPECT_EQ(hash_text(Hasher().digest()), "2d06800538d394c2");
}

TEST_F(FileTest, WriterAndReaderAgreeOnTheDigest) {
  const std::string text(3'000'001, 'x');  // several pieces of digest_file()
  FileWriter writer(folder_ / "a");
  writer.write(bytes_of(std::string_view(text).substr(0, 7)));
  writer.write(bytes_of(std::string_view(text).substr(7)));
  EXPECT_EQ(writer.bytes(), 3'000'001);
  const FileDigest digest = writer.commit();
  EXPECT_EQ(digest.bytes, 3'000'001);
  EXPECT_EQ(digest, digest_file(folder_ / "a"));
  Hasher hasher;
  hasher.update(bytes_of(text));
  EXPECT_EQ(digest.xxh3, hasher.digest());
}

TEST_F(FileTest, MapsAFile) {
  write_file_atomically(folder_ / "a", "hello");
  write_file_atomically(folder_ / "empty", "");
  MappedFile file(folder_ / "a");
  EXPECT_TRUE(std::ranges::equal(file.bytes(), bytes_of("hello")));
  EXPECT_TRUE(MappedFile(folder_ / "empty").bytes().empty());

  write_file_atomically(folder_ / "a", "other");  // the old mapping keeps the old bytes
  EXPECT_TRUE(std::ranges::equal(file.bytes(), bytes_of("hello")));
  MappedFile moved = std::move(file);
  EXPECT_TRUE(std::ranges::equal(moved.bytes(), bytes_of("hello")));
}

TEST_F(FileTest, ReadsOnlyRegularFilesOfTheRightSize) {
  ASSERT_EQ(::mkfifo((folder_ / "fifo").c_str(), 0600), 0);
  write_file_atomically(folder_ / "a", "12345");
  EXPECT_EQ(read_text_file(folder_ / "a", 5), "12345");
  EXPECT_THAT(io_error([&] { read_text_file(folder_ / "a", 4); }),
              AllOf(HasSubstr("5 bytes"), HasSubstr("at most 4")));
  EXPECT_THAT(io_error([&] { read_text_file(folder_ / "none", 9); }),
              AllOf(HasSubstr("/none'"), HasSubstr("No such file")));
  EXPECT_THAT(io_error([&] { read_text_file(folder_ / "fifo", 9); }), HasSubstr("is a FIFO"));
  EXPECT_THAT(io_error([&] { MappedFile map(folder_.path()); }), HasSubstr("is a directory"));
  EXPECT_THAT(io_error([&] { digest_file("/dev/zero"); }), HasSubstr("is a device"));
}

TEST_F(FileTest, UncommittedFileLeavesNothing) {
  write_file_atomically(folder_ / "a", "old");
  {
    FileWriter writer(folder_ / "a");
    writer.write(bytes_of("new"));
    EXPECT_EQ(names(), (std::vector<std::string>{"a", "a.tmp"}));
  }
  EXPECT_EQ(contents("a"), "old");
  EXPECT_EQ(names(), std::vector<std::string>{"a"});
}

TEST_F(FileTest, SyncsTheFileAndThenItsFolder) {
  std::vector<std::string> names_at_sync;
  faults.on_fsync = [&] {
    names_at_sync.push_back(testing::PrintToString(names()));
    return 0;
  };
  write_file_atomically(folder_ / "a", "text");
  EXPECT_EQ(names_at_sync, (std::vector<std::string>{"{ \"a.tmp\" }", "{ \"a\" }"}));
}

TEST_F(FileTest, SurvivesShortAndInterruptedWrites) {
  int calls = 0;
  faults.on_write = [&](std::size_t& bytes) {
    bytes = 1;
    return ++calls % 2 ? EINTR : 0;
  };
  const FileDigest digest = write_file_atomically(folder_ / "a", "one byte at a time");
  faults.on_write = nullptr;
  EXPECT_EQ(calls, 2 * 18);
  EXPECT_EQ(digest.bytes, 18);
  EXPECT_EQ(contents("a"), "one byte at a time");
}

TEST_F(FileTest, EveryFailingWriteKeepsTheOldFile) {
  write_file_atomically(folder_ / "a", "old");
  for (int failing_call = 0; failing_call < 10; ++failing_call) {
    int call = 0;
    faults.on_write = [&](std::size_t& bytes) {
      bytes = 1;
      return call++ == failing_call ? ENOSPC : 0;
    };
    const std::string message =
        io_error([&] { write_file_atomically(folder_ / "a", "0123456789"); });
    faults.on_write = nullptr;
    EXPECT_THAT(message,
                AllOf(HasSubstr(fmt::format("write {} bytes at byte {} of '{}", 10 - failing_call,
                                            failing_call, (folder_ / "a").string())),
                      HasSubstr("No space left"), HasSubstr("bytes are free")));
    EXPECT_EQ(contents("a"), "old");
    EXPECT_EQ(names(), std::vector<std::string>{"a"});
  }
}

TEST_F(FileTest, FailedSyncIsNotTriedAgain) {
  write_file_atomically(folder_ / "a", "old");
  faults.fsync_calls = 0;
  faults.on_fsync = [] { return EIO; };
  EXPECT_THAT(io_error([&] { write_file_atomically(folder_ / "a", "new"); }),
              AllOf(HasSubstr("cannot sync"), HasSubstr("Input/output error")));
  EXPECT_EQ(faults.fsync_calls, 1);
  EXPECT_EQ(contents("a"), "old");
  EXPECT_EQ(names(), std::vector<std::string>{"a"});
}

TEST_F(FileTest, FailedRenameNamesBothPaths) {
  faults.on_rename = [] { return EXDEV; };
  EXPECT_THAT(io_error([&] { write_file_atomically(folder_ / "a", "new"); }),
              AllOf(HasSubstr("/a.tmp' to"), HasSubstr("/a': Invalid cross-device link")));
  faults.on_rename = nullptr;
  EXPECT_TRUE(names().empty());
  EXPECT_THAT(io_error([&] { rename_path(folder_ / "from", folder_ / "to"); }),
              AllOf(HasSubstr("/from' to"), HasSubstr("/to'")));
}

TEST_F(FileTest, FailsWhereNothingCanBeCreated) {
  EXPECT_THAT(io_error([&] { FileWriter writer(folder_ / "none" / "a"); }),
              AllOf(HasSubstr("cannot create"), HasSubstr("none/a.tmp")));
  EXPECT_THAT(io_error([&] { fsync_directory(folder_ / "none"); }),
              HasSubstr("cannot open folder"));
}

TEST_F(FileTest, SyncsFilesInTheWorkingFolder) {  // a path without a folder part
  const auto before = std::filesystem::current_path();
  std::filesystem::current_path(folder_.path());
  write_file_atomically("a", "text");
  std::filesystem::current_path(before);
  EXPECT_EQ(contents("a"), "text");
}

}  // namespace
}  // namespace jiboia
