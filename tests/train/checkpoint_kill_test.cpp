// Saves checkpoints in a child process that is killed, or whose disk fails, at every possible
// moment, and looks at what the next process finds.

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <csignal>
#include <cstdio>
#include <functional>
#include <limits>
#include <string>
#include <vector>

#include "core/error.h"
#include "tests/support/temporary_folder.h"
#include "tests/train/tiny_store.h"
#include "train/checkpoint/checkpoint_store.h"
#include "train/checkpoint/manifest.h"

namespace {

/// What the system calls below do instead of their work. Every one asks on_call first: an errno, or
/// 0 to go on. Kinds are the functions' names.
struct Faults {
  std::function<int(const char* kind, const std::string& path)> on_call;
  std::int64_t bytes_until_kill = std::numeric_limits<std::int64_t>::max();
  bool struck = false;  ///< an error was returned
};
Faults faults;

std::string path_of(int descriptor) {
  std::array<char, 4096> path{};
  const ssize_t length = readlink(("/proc/self/fd/" + std::to_string(descriptor)).c_str(),
                                  path.data(), path.size() - 1);
  return length < 0 ? "" : std::string(path.data(), static_cast<std::size_t>(length));
}

bool fails(const char* kind, const std::string& path) {
  if (!faults.on_call) return false;
  const int error_number = faults.on_call(kind, path);
  if (error_number != 0) faults.struck = true;
  errno = error_number;
  return error_number != 0;
}

int unlink_at(int folder, const char* path, int flags) {
  return static_cast<int>(syscall(SYS_unlinkat, folder, path, flags));
}

}  // namespace

// These stand before libc's for the whole program. fsync is not passed on: it takes long and makes
// no difference to a machine that stays up.
extern "C" ssize_t write(int descriptor, const void* data, std::size_t bytes) {
  if (fails("write", path_of(descriptor))) return -1;
  const auto wanted = static_cast<std::int64_t>(bytes);
  if (wanted >= faults.bytes_until_kill) {
    syscall(SYS_write, descriptor, data, faults.bytes_until_kill);
    raise(SIGKILL);
  }
  if (descriptor > 2) faults.bytes_until_kill -= wanted;
  return syscall(SYS_write, descriptor, data, bytes);
}
extern "C" int fsync(int descriptor) { return fails("fsync", path_of(descriptor)) ? -1 : 0; }
extern "C" int rename(const char* from, const char* to) noexcept {
  if (fails("rename", from)) return -1;
  return static_cast<int>(syscall(SYS_renameat2, AT_FDCWD, from, AT_FDCWD, to, 0));
}
extern "C" int mkdir(const char* path, mode_t mode) noexcept {
  return fails("mkdir", path) ? -1 : static_cast<int>(syscall(SYS_mkdirat, AT_FDCWD, path, mode));
}
extern "C" int symlink(const char* target, const char* path) noexcept {
  if (fails("symlink", path)) return -1;
  return static_cast<int>(syscall(SYS_symlinkat, target, AT_FDCWD, path));
}
extern "C" int unlink(const char* path) noexcept {
  return fails("unlink", path) ? -1 : unlink_at(AT_FDCWD, path, 0);
}
extern "C" int unlinkat(int folder, const char* path, int flags) noexcept {
  return fails("unlink", path) ? -1 : unlink_at(folder, path, flags);
}
extern "C" int remove(const char* path) noexcept {
  if (fails("unlink", path)) return -1;
  const int done = unlink_at(AT_FDCWD, path, 0);
  return done == 0 || errno != EISDIR ? done : unlink_at(AT_FDCWD, path, AT_REMOVEDIR);
}

namespace jiboia {
namespace {

namespace fs = std::filesystem;
using testing::AllOf;
using testing::HasSubstr;

TrainerState state_at(std::int64_t step) {
  return {.step = step, .tokens = step, .next_row = step};
}

/// Exit codes of the child.
enum Outcome { kSaved = 0, kSavedInSpiteOfErrors = 9, kIoError = 10, kOtherError = 11 };

/// From when on a child has faults.
enum class Faulty { kFromTheStart, kWhenSaving };

class CheckpointKillTest : public testing::Test {
 protected:
  /// Steps 1 and 2 are committed, a damaged step 3 is in the way of the one that the tests save,
  /// and step 4 is unfinished. Keeping two then means that step 1 goes.
  void SetUp() override {
    const RunFolder run(prepared_);
    CheckpointStore store(run, {.keep = 0});
    for (const std::int64_t step : {1, 2, 3, 4}) save(store, step);
    fs::resize_file(store.path_of(3) / "config.json", 5);
    fs::rename(store.path_of(4), store.path_of(4).string() + ".tmp-0123");
  }
  void TearDown() override { faults = {}; }

  static void save(CheckpointStore& store, std::int64_t step) {
    store.save(state_at(step), tiny_store_config(), tiny_store(static_cast<int>(step)),
               {{"tokenizer.json", "{}"}});
    store.remove_superseded();
  }
  static std::int64_t resume(CheckpointStore& store) {
    ParameterStore parameters = tiny_store(1000);
    testing::internal::CaptureStderr();
    const auto resumed = store.resume({}, DataChange::kRefuse, parameters);
    testing::internal::GetCapturedStderr();
    const std::int64_t step = resumed.value().state.step;
    EXPECT_TRUE(equal_bits(parameters, tiny_store(static_cast<int>(step))));
    return step;
  }

  /// Starts anew from the prepared folder, resumes at step 2 and saves step 3, all in a child, with
  /// the faults that `arm` sets. Returns its wait status; its error message is in message_.
  int run_child(Faulty faulty, const std::function<void()>& arm) {
    fs::remove_all(output_);
    fs::copy(prepared_, output_, fs::copy_options::recursive | fs::copy_options::copy_symlinks);
    const pid_t child = fork();
    if (child == 0) _exit(child_main(faulty, arm));
    int status = 0;
    waitpid(child, &status, 0);
    message_ = fs::exists(message_file_) ? read_text_file(message_file_, 1 << 16) : "";
    fs::remove(message_file_);
    return status;
  }

  int child_main(Faulty faulty, const std::function<void()>& arm) {
    std::string message;
    Outcome outcome = kSaved;
    testing::internal::CaptureStderr();
    try {
      if (faulty == Faulty::kFromTheStart) arm();
      const RunFolder run(output_);
      CheckpointStore store(run, {.keep = 2});
      ParameterStore parameters = tiny_store(0);
      if (store.resume({}, DataChange::kRefuse, parameters)->state.step != 2) return kOtherError;
      if (faulty == Faulty::kWhenSaving) arm();
      save(store, 3);
      if (faults.struck) outcome = kSavedInSpiteOfErrors;
    } catch (const Error& error) {
      message = error.what();
      outcome = error.kind() == ErrorKind::kIo ? kIoError : kOtherError;
    } catch (const std::exception& error) {
      message = error.what();
      outcome = kOtherError;
    }
    faults = {};
    rlimit no_limit{RLIM_INFINITY, RLIM_INFINITY};
    setrlimit(RLIMIT_FSIZE, &no_limit);
    write_file_atomically(message_file_, message);
    return outcome;
  }

  /// A new process finds step 2 or step 3 whole, and can go on to save.
  std::int64_t check_next_start() {
    const RunFolder run(output_);
    testing::internal::CaptureStderr();
    CheckpointStore store(run, {.keep = 2});
    testing::internal::GetCapturedStderr();
    for (const auto& entry : fs::directory_iterator(run.checkpoints()))
      EXPECT_EQ(entry.path().string().find(".tmp-"), std::string::npos) << entry.path();
    for (const std::int64_t whole : {1, 2}) {
      if (fs::exists(store.path_of(whole))) verify_folder(store.path_of(whole));
    }
    const std::int64_t step = resume(store);
    EXPECT_TRUE(step == 2 || step == 3);
    save(store, 4);
    EXPECT_EQ(store.steps(), (std::vector<std::int64_t>{step, 4}));
    EXPECT_EQ(resume(store), 4);
    return step;
  }

  /// Runs children with ever later faults until one is not hit any more; returns how many were.
  int count_kills(Faulty faulty, const std::function<void(int point)>& arm) {
    bool saved_before = false;
    for (int point = 0;; ++point) {
      const int status = run_child(faulty, [&] { arm(point); });
      if (!WIFSIGNALED(status)) {
        EXPECT_EQ(status, kSaved) << message_;
        EXPECT_EQ(check_next_start(), 3);
        return point;
      }
      const bool saved = check_next_start() == 3;
      EXPECT_TRUE(saved || !saved_before) << "a later kill left less";
      saved_before = saved;
      if (HasFailure()) ADD_FAILURE() << "killed at point " << point;
    }
  }

  TemporaryFolder root_;
  const fs::path prepared_ = root_ / "prepared", output_ = root_ / "output";
  const fs::path message_file_ = root_ / "message";
  std::string message_;
};

TEST_F(CheckpointKillTest, SurvivesAKillAtAnyByte) {
  const int kills =
      count_kills(Faulty::kWhenSaving, [](int point) { faults.bytes_until_kill = point * 100; });
  EXPECT_GT(kills, 150);
}

TEST_F(CheckpointKillTest, SurvivesAKillAtAnySystemCall) {
  const int kills = count_kills(Faulty::kFromTheStart, [](int point) {
    faults.on_call = [left = point](const char*, const std::string&) mutable {
      if (left-- == 0) raise(SIGKILL);
      return 0;
    };
  });
  EXPECT_GT(kills, 60);
}

TEST_F(CheckpointKillTest, SurvivesAnyFailingSystemCall) {
  for (const bool for_ever : {false, true}) {
    for (int point = 0;; ++point) {
      const int status = run_child(Faulty::kWhenSaving, [&] {
        faults.on_call = [left = point, for_ever](const char* kind, const std::string&) mutable {
          const bool strikes = for_ever ? left <= 0 : left == 0;
          --left;
          return strikes ? kind == std::string("fsync") ? EIO : ENOSPC : 0;
        };
      });
      ASSERT_TRUE(WIFEXITED(status));
      const int outcome = WEXITSTATUS(status);
      ASSERT_NE(outcome, kOtherError) << message_;
      const std::int64_t step = check_next_start();
      ASSERT_TRUE(outcome == kIoError || step == 3);
      ASSERT_FALSE(HasFailure()) << "at call " << point << ": " << message_;
      if (outcome == kSaved) break;
    }
  }
}

TEST_F(CheckpointKillTest, IsSavedEvenIfNothingOldCanBeRemoved) {
  const int status = run_child(Faulty::kWhenSaving, [] {
    faults.on_call = [committed = false](const char* kind, const std::string& path) mutable {
      if (kind == std::string("rename")) committed |= path.find("3.tmp-") != std::string::npos;
      return committed && kind == std::string("unlink") ? EACCES : 0;
    };
  });
  EXPECT_EQ(WEXITSTATUS(status), kSavedInSpiteOfErrors) << message_;
  EXPECT_EQ(check_next_start(), 3);
}

TEST_F(CheckpointKillTest, AFullDiskIsToldAndLeavesNothing) {
  for (const char* file : {"model.safetensors", "optimizer", "MANIFEST.json"}) {
    const int status = run_child(Faulty::kWhenSaving, [&] {
      faults.on_call = [&](const char* kind, const std::string& path) {
        const bool hit = kind == std::string("write") && path.find(file) != std::string::npos;
        return hit ? ENOSPC : 0;
      };
    });
    EXPECT_EQ(WEXITSTATUS(status), kIoError);
    EXPECT_THAT(message_, AllOf(HasSubstr("step 3"), HasSubstr(file), HasSubstr("it takes"),
                                HasSubstr("are free"), HasSubstr("No space left")));
    std::vector<std::string> names;
    for (const auto& entry : fs::directory_iterator(output_ / "checkpoints"))
      names.push_back(entry.path().filename());
    EXPECT_THAT(names, testing::UnorderedElementsAre("step_00000001", "step_00000002",
                                                     "step_00000003", "latest"));
    EXPECT_EQ(check_next_start(), 2);
  }
}

TEST_F(CheckpointKillTest, SurvivesAFileSizeLimit) {
  int hit = 0;
  for (rlim_t bytes = 0; bytes <= 16000; bytes += 1000) {
    for (const auto action : {SIG_DFL, SIG_IGN}) {  // killed, or told EFBIG
      const int status = run_child(Faulty::kWhenSaving, [&] {
        std::signal(SIGXFSZ, action);
        rlimit limit{bytes, RLIM_INFINITY};
        setrlimit(RLIMIT_FSIZE, &limit);
      });
      if (WIFSIGNALED(status)) {
        EXPECT_EQ(WTERMSIG(status), SIGXFSZ);
      } else if (WEXITSTATUS(status) != kSaved) {
        EXPECT_EQ(WEXITSTATUS(status), kIoError);
        EXPECT_THAT(message_, AllOf(HasSubstr("File too large"), HasSubstr("are free")));
      }
      hit += status != kSaved;
      check_next_start();
      ASSERT_FALSE(HasFailure()) << "limit " << bytes;
    }
  }
  EXPECT_GT(hit, 15);
}

TEST_F(CheckpointKillTest, OlderOnesStayWhenTheNewOneReadsBackDifferently) {
  const fs::path weights = output_ / "checkpoints/step_00000003/model.safetensors";
  const int status = run_child(Faulty::kWhenSaving, [&] {
    faults.on_call = [&](const char* kind, const std::string&) {
      if (kind == std::string("symlink")) fs::resize_file(weights, 100);  // just committed
      return 0;
    };
  });
  EXPECT_EQ(WEXITSTATUS(status), kIoError);
  EXPECT_THAT(message_, AllOf(HasSubstr("reads back differently"), HasSubstr(weights.string())));
  EXPECT_TRUE(fs::exists(output_ / "checkpoints/step_00000001"));
  EXPECT_EQ(check_next_start(), 2);
}

/// After a power failure, only what was synced is certain to be there.
TEST_F(CheckpointKillTest, EverythingIsSyncedBeforeItCounts) {
  const RunFolder run(output_);
  CheckpointStore store(run, {.keep = 0});
  std::vector<std::string> events;
  faults.on_call = [&](const char* kind, const std::string& path) {
    events.push_back(std::string(kind) + " " + fs::path(path).filename().string());
    return 0;
  };
  save(store, 1);
  faults = {};
  const std::string folder = "step_00000001.tmp-" + read_manifest(store.path_of(1)).run_id;
  const auto position = [&](const std::string& event) {
    const auto found = std::ranges::find(events, event);
    EXPECT_NE(found, events.end()) << event;
    return found - events.begin();
  };
  const auto committed = position("rename " + folder);
  EXPECT_EQ(events.at(committed - 1), "fsync " + folder);
  EXPECT_EQ(events.at(committed + 1), "fsync checkpoints");
  for (const auto& [name, digest] : verify_folder(store.path_of(1)).files) {
    const auto renamed = position("rename " + name + ".tmp");
    EXPECT_EQ(events.at(renamed - 1), "fsync " + name + ".tmp");
    EXPECT_LT(renamed, position("rename MANIFEST.json.tmp"));
  }
  EXPECT_LT(position("rename MANIFEST.json.tmp"), committed);
}

}  // namespace
}  // namespace jiboia
