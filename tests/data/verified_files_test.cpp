#include "data/verified_files.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <utime.h>

#include <cstdlib>
#include <fstream>
#include <thread>

#include "data/file.h"
#include "data/shard_manifest.h"
#include "tests/data/shard_files.h"
#include "tests/support/temporary_folder.h"

namespace jiboia {
namespace {

namespace fs = std::filesystem;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::SizeIs;

constexpr const char* kHash = "0123456789abcdef";
constexpr FileStamp kStamp{.bytes = 5, .modified_ns = 7, .changed_ns = 8, .inode = 9};
constexpr std::chrono::system_clock::time_point kLater{std::chrono::hours(1)};

std::vector<fs::path> files_below(const fs::path& folder) {
  std::vector<fs::path> files;
  if (!fs::exists(folder)) return files;
  for (const auto& entry : fs::recursive_directory_iterator(folder)) {
    if (entry.is_regular_file()) files.push_back(entry.path());
  }
  return files;
}

void overwrite(const fs::path& path, const std::string& text) {
  std::ofstream(path, std::ios::binary | std::ios::trunc) << text;
}

/// Makes files, so that they are not forgotten as gone.
void make_files(const fs::path& folder, const std::vector<std::string>& names) {
  for (const std::string& name : names) overwrite(folder / name, "");
}

TEST(VerifiedFiles, AreRememberedByNameStampAndHash) {
  const TemporaryFolder data, cache;
  make_files(data.path(), {"a", "b"});
  {
    VerifiedFiles files(data.path(), cache.path());
    EXPECT_FALSE(files.contains("a", kStamp, kHash));
    files.add("a", kStamp, kHash, kLater);
    files.add("b", kStamp, kHash, kLater);
    files.remove("b");
    EXPECT_TRUE(files.contains("a", kStamp, kHash));
    EXPECT_THAT(files_below(cache.path()), IsEmpty());
    files.save();
  }
  EXPECT_THAT(files_below(data.path()), SizeIs(2));
  const VerifiedFiles files(data.path(), cache.path());
  EXPECT_TRUE(files.contains("a", kStamp, kHash));
  EXPECT_FALSE(files.contains("b", kStamp, kHash));
  EXPECT_FALSE(files.contains("a", kStamp, "0123456789abcdee"));
  for (std::int64_t FileStamp::*member :
       {&FileStamp::bytes, &FileStamp::modified_ns, &FileStamp::changed_ns, &FileStamp::inode}) {
    FileStamp other = kStamp;
    other.*member += 1;
    EXPECT_FALSE(files.contains("a", other, kHash));
  }
  EXPECT_FALSE(VerifiedFiles(cache.path(), cache.path()).contains("a", kStamp, kHash));
}

TEST(VerifiedFiles, AreForgottenWhenTheyAreGone) {
  const TemporaryFolder data, cache;
  make_files(data.path(), {"a", "b"});
  {
    VerifiedFiles files(data.path(), cache.path());
    files.add("a", kStamp, kHash, kLater);
    files.add("b", kStamp, kHash, kLater);
    files.save();
  }
  fs::remove(data / "a");
  make_files(data.path(), {"c"});
  {
    VerifiedFiles files(data.path(), cache.path());
    EXPECT_TRUE(files.contains("a", kStamp, kHash));
    files.add("c", kStamp, kHash, kLater);
    files.save();
  }
  const VerifiedFiles files(data.path(), cache.path());
  EXPECT_FALSE(files.contains("a", kStamp, kHash));
  EXPECT_TRUE(files.contains("b", kStamp, kHash));
  EXPECT_TRUE(files.contains("c", kStamp, kHash));
}

TEST(VerifiedFiles, OfOneFolderAreTheSameByEveryPathToIt) {
  const TemporaryFolder data, cache;
  fs::create_directory(data / "real");
  fs::create_directory_symlink(data / "real", data / "link");
  make_files(data / "real", {"a"});
  {
    VerifiedFiles files(data / "link/../real/.", cache.path());
    files.add("a", kStamp, kHash, kLater);
    files.save();
  }
  EXPECT_TRUE(VerifiedFiles(data / "link", cache.path()).contains("a", kStamp, kHash));
}

TEST(VerifiedFiles, ThatChangedAMomentBeforeTheyWereReadAreNotRemembered) {
  const TemporaryFolder data, cache;
  VerifiedFiles files(data.path(), cache.path());
  overwrite(data / "a", "text");
  // Times of the contents can be set; those of the status, which count too, cannot.
  const utimbuf long_ago{.actime = 1000, .modtime = 1000};
  ASSERT_EQ(::utime((data / "a").c_str(), &long_ago), 0);
  const FileStamp stamp = stamp_of(data / "a");
  ASSERT_EQ(stamp.modified_ns, std::int64_t{1000} * 1'000'000'000);
  const auto changed =
      std::chrono::system_clock::time_point(std::chrono::nanoseconds(stamp.changed_ns));
  // What counts is when reading began: a file may take long to read and change meanwhile.
  for (const auto began : {changed, changed + VerifiedFiles::kSettled}) {
    files.add("a", stamp, kHash, began);
    EXPECT_FALSE(files.contains("a", stamp, kHash));
  }
  files.add("a", stamp, kHash, changed + VerifiedFiles::kSettled + std::chrono::milliseconds(1));
  EXPECT_TRUE(files.contains("a", stamp, kHash));
  FileStamp written = stamp;
  std::swap(written.modified_ns, written.changed_ns);
  files.add("b", written, kHash, changed + VerifiedFiles::kSettled);
  EXPECT_FALSE(files.contains("b", written, kHash));
}

TEST(VerifiedFiles, ACacheThatIsDamagedOrAnothersIsIgnored) {
  const TemporaryFolder data, cache;
  make_files(data.path(), {"a", "b"});
  VerifiedFiles files(data.path(), cache.path());
  files.add("a", kStamp, kHash, kLater);
  files.save();
  ASSERT_EQ(files_below(cache.path()).size(), 1);
  const fs::path file = files_below(cache.path()).front();
  const std::string good = read_text_file(file, 1 << 20);
  const auto replaced = [&](const std::string& from, const std::string& to) {
    std::string text = good;
    text.replace(text.find(from), from.size(), to);
    return text;
  };
  for (const std::string& bad :
       {std::string(), std::string("{}"), std::string("[]"), good.substr(0, good.size() / 2),
        good + "x", replaced("\"bytes\": 5", "\"bytes\": \"5\""),
        replaced("\"format_version\": 1", "\"format_version\": 2"),
        replaced("jiboia-verified-files", "another"), replaced(data.path().string(), "/another"),
        replaced("\"files\": {", "\"files\": [{")}) {
    overwrite(file, bad);
    EXPECT_FALSE(VerifiedFiles(data.path(), cache.path()).contains("a", kStamp, kHash)) << bad;
    // And it is replaced by what is found now.
    VerifiedFiles again(data.path(), cache.path());
    again.add("b", kStamp, kHash, kLater);
    again.save();
    EXPECT_TRUE(VerifiedFiles(data.path(), cache.path()).contains("b", kStamp, kHash)) << bad;
  }
}

TEST(VerifiedFiles, ACacheThatCannotBeWrittenIsNoError) {
  const TemporaryFolder data, cache;
  overwrite(cache / "file", "");
  for (const fs::path& place : {cache / "file", fs::path(), fs::path("/proc/no/such/folder")}) {
    VerifiedFiles files(data.path(), place);
    files.add("a", kStamp, kHash, kLater);
    EXPECT_NO_THROW(files.save());
    EXPECT_FALSE(VerifiedFiles(data.path(), place).contains("a", kStamp, kHash));
  }
  EXPECT_EQ(files_below(cache.path()).size(), 1);
}

TEST(VerifiedFiles, ManyMaySaveAtOnce) {
  const TemporaryFolder data, cache;
  for (int n = 0; n < 100; ++n) make_files(data.path(), {fmt::format("shard_{}", n)});
  {
    std::vector<std::jthread> savers;
    for (int i = 0; i < 8; ++i) {
      savers.emplace_back([&] {
        for (int k = 0; k < 20; ++k) {
          VerifiedFiles files(data.path(), cache.path());
          for (int n = 0; n < 100; ++n)
            files.add(fmt::format("shard_{}", n), kStamp, kHash, kLater);
          files.save();
        }
      });
    }
  }
  EXPECT_EQ(files_below(cache.path()).size(), 1);
  const VerifiedFiles files(data.path(), cache.path());
  for (int n = 0; n < 100; ++n) {
    EXPECT_TRUE(files.contains(fmt::format("shard_{}", n), kStamp, kHash));
  }
}

TEST(VerifiedFiles, LieWhereTheUserKeepsCaches) {
  const char* cache = std::getenv("XDG_CACHE_HOME");
  const std::string saved = cache ? cache : "",
                    home = std::getenv("HOME") ? std::getenv("HOME") : "";
  ::setenv("XDG_CACHE_HOME", "/somewhere", 1);
  EXPECT_EQ(user_cache_folder(), "/somewhere/jiboia");
  ::setenv("XDG_CACHE_HOME", "relative", 1);
  ::setenv("HOME", "/home/someone", 1);
  EXPECT_EQ(user_cache_folder(), "/home/someone/.cache/jiboia");
  ::unsetenv("XDG_CACHE_HOME");
  EXPECT_EQ(user_cache_folder(), "/home/someone/.cache/jiboia");
  ::unsetenv("HOME");
  EXPECT_EQ(user_cache_folder(), "");
  if (!saved.empty()) ::setenv("XDG_CACHE_HOME", saved.c_str(), 1);
  if (!home.empty()) ::setenv("HOME", home.c_str(), 1);
}

/// Two shards that have not changed for long enough to be remembered.
class VerifyFiles : public testing::Test {
 protected:
  void SetUp() override {
    write_shards(data_.path(), {{.tokens = some_tokens(400, 50)}, {.tokens = some_tokens(300, 50)}},
                 50);
    std::this_thread::sleep_for(VerifiedFiles::kSettled + std::chrono::milliseconds(50));
  }
  void verify(Verification verification = Verification::kChanged) {
    verify_files(ShardManifest::load(data_.path()),
                 {.cache_folder = cache_.path(), .verification = verification});
  }
  bool remembers(const char* name) const {
    const ShardManifest manifest = ShardManifest::load(data_.path());
    const VerifiedFiles files(data_.path(), cache_.path());
    for (const auto& shard : manifest.shards) {
      if (shard.name == name) return files.contains(name, stamp_of(data_ / name), shard.xxh3);
    }
    return false;
  }
  std::string refusal(Verification verification = Verification::kChanged) {
    return error_of(ErrorKind::kData, [&] { verify(verification); });
  }
  /// Changes a byte and keeps the size.
  static void damage(const fs::path& path) {
    std::fstream file(path, std::ios::in | std::ios::out | std::ios::binary);
    file.seekp(-1, std::ios::end);
    file.put('\x55');
  }

  TemporaryFolder data_, cache_;
};

TEST_F(VerifyFiles, AreNotReadAgainUntilTheyChange) {
  verify();
  ASSERT_TRUE(remembers("shard_00000.h5"));
  ASSERT_TRUE(remembers("shard_00001.h5"));
  const auto before = fs::last_write_time(files_below(cache_.path()).front());
  verify();
  EXPECT_EQ(fs::last_write_time(files_below(cache_.path()).front()), before);

  damage(data_ / "shard_00001.h5");
  EXPECT_THAT(refusal(), HasSubstr("shard_00001.h5"));
  EXPECT_TRUE(remembers("shard_00000.h5"));
  EXPECT_FALSE(remembers("shard_00001.h5"));
}

TEST_F(VerifyFiles, ThatHaveJustChangedAreReadEachTime) {
  overwrite(data_ / "shard_00001.h5", read_text_file(data_ / "shard_00001.h5", 1 << 20));
  verify();
  EXPECT_TRUE(remembers("shard_00000.h5"));
  EXPECT_FALSE(remembers("shard_00001.h5"));
}

TEST_F(VerifyFiles, ThatTheManifestExpectsOtherContentsOfAreRead) {
  verify();
  write_manifest(data_.path(), {{.tokens = some_tokens(400, 50)}, {.tokens = some_tokens(300, 50)}},
                 50, [](nlohmann::json& json) { json["files"][0]["xxh3"] = kHash; });
  EXPECT_THAT(refusal(), HasSubstr("shard_00000.h5: its contents have hash"));
}

TEST_F(VerifyFiles, AreAllReadWhenThatIsWantedAndBadOnesForgotten) {
  verify();
  // Damage that no stamp shows: as if the stamp that is remembered were that of the bad file.
  damage(data_ / "shard_00001.h5");
  const std::string hash = ShardManifest::load(data_.path()).shards[1].xxh3;
  const fs::path file = files_below(cache_.path()).front();
  nlohmann::json json = nlohmann::json::parse(read_text_file(file, 1 << 20));
  const FileStamp stamp = stamp_of(data_ / "shard_00001.h5");
  json["files"]["shard_00001.h5"]["modified_ns"] = stamp.modified_ns;
  json["files"]["shard_00001.h5"]["changed_ns"] = stamp.changed_ns;
  overwrite(file, json.dump());
  ASSERT_TRUE(remembers("shard_00001.h5"));
  EXPECT_NO_THROW(verify());
  EXPECT_THAT(refusal(Verification::kAll), HasSubstr("shard_00001.h5"));
  EXPECT_THAT(refusal(), HasSubstr("shard_00001.h5"));
  EXPECT_TRUE(remembers("shard_00000.h5"));
}

TEST_F(VerifyFiles, OfAnotherSizeOrMissingAreRefusedWithoutReading) {
  verify();
  overwrite(data_ / "shard_00000.h5", "short");
  EXPECT_THAT(refusal(), HasSubstr("has 5 bytes"));
  fs::remove(data_ / "shard_00000.h5");
  EXPECT_THAT(refusal(), HasSubstr("missing"));
}

}  // namespace
}  // namespace jiboia
