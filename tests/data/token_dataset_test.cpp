#include "data/token_dataset.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/stat.h>

#include <algorithm>
#include <fstream>
#include <limits>
#include <utility>

#include "data/file.h"
#include "tests/data/shard_files.h"
#include "tests/support/temporary_folder.h"

namespace jiboia {
namespace {

namespace fs = std::filesystem;
using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;

struct Row {
  std::vector<std::int32_t> tokens, targets, document_start;
};

Row read_row(const TokenDataset& dataset, std::int64_t index) {
  const auto size = static_cast<std::size_t>(dataset.seq_len());
  Row row{std::vector<std::int32_t>(size, -7), std::vector<std::int32_t>(size, -7),
          std::vector<std::int32_t>(dataset.has_document_starts() ? size : 0, -7)};
  dataset.read_row(index, {row.tokens, row.targets, row.document_start});
  return row;
}

std::string refusal(const fs::path& folder, const TokenDataset::Options& options) {
  return error_of(ErrorKind::kData, [&] { TokenDataset::open(folder, options); });
}

std::vector<std::int64_t> counting(std::int64_t count) {
  std::vector<std::int64_t> tokens;
  for (std::int64_t i = 0; i < count; ++i) tokens.push_back(i);
  return tokens;
}

const TokenDataset::Options kSmall{.seq_len = 4, .vocab_size = 100};
const TokenDataset::Options kSmallWithStarts{
    .seq_len = 4, .vocab_size = 100, .document_starts = DocumentStarts::kRead};

TEST(TokenDataset, HuggingFaceRuleIgnoresTheLastTarget) {
  const TemporaryFolder folder;
  write_shards(folder.path(),
               {{.tokens = counting(8), .row_length = 4},
                {.tokens = counting(4), .row_length = 4, .type = "int64"}},
               8);
  // Two shards with other contents, though the second repeats the first one's row.
  const auto dataset = TokenDataset::open(folder.path(), kSmall);
  EXPECT_EQ(dataset.rows(), 3);
  EXPECT_EQ(dataset.targets_per_row(), 3);
  EXPECT_THAT(dataset.summary(), Not(HasSubstr("left out")));
  EXPECT_THAT(read_row(dataset, 1).tokens, ElementsAre(4, 5, 6, 7));
  EXPECT_THAT(read_row(dataset, 1).targets, ElementsAre(5, 6, 7, kIgnoredTarget));
  EXPECT_THAT(read_row(dataset, 2).tokens, ElementsAre(0, 1, 2, 3));
  EXPECT_THROW(read_row(dataset, 3), Error);
  EXPECT_THROW(read_row(dataset, -1), Error);
}

TEST(TokenDataset, OpenLmRuleGivesEveryPositionATarget) {
  const TemporaryFolder folder;
  write_shards(folder.path(), {{.tokens = counting(10), .row_length = 5}}, 10);
  const auto dataset = TokenDataset::open(folder.path(), kSmall);
  EXPECT_EQ(dataset.rows(), 2);
  EXPECT_EQ(dataset.targets_per_row(), 4);
  EXPECT_THAT(read_row(dataset, 1).tokens, ElementsAre(5, 6, 7, 8));
  EXPECT_THAT(read_row(dataset, 1).targets, ElementsAre(6, 7, 8, 9));
}

TEST(TokenDataset, RowsOfAnotherLengthAreRefused) {
  const TemporaryFolder folder;
  write_shards(folder.path(), {{.tokens = counting(12), .row_length = 6}}, 12);
  EXPECT_THAT(refusal(folder.path(), kSmall),
              AllOf(HasSubstr("rows of 6 tokens"), HasSubstr("seq_len 4")));
}

TEST(TokenDataset, StreamRowsShareOneTokenAndSpanShards) {
  const TemporaryFolder folder;
  auto all = counting(31);
  const auto part = [&](int begin, int end) {
    return ShardContents{.tokens = {all.begin() + begin, all.begin() + end}, .chunk = 3};
  };
  write_shards(folder.path(), {part(0, 10), part(10, 11), part(11, 13), part(13, 31)}, 31);
  for (const std::int64_t seq_len : {1, 2, 3, 4, 7, 29, 30}) {
    const auto dataset = TokenDataset::open(folder.path(), {.seq_len = seq_len, .vocab_size = 31});
    EXPECT_EQ(dataset.rows(), 30 / seq_len);
    EXPECT_EQ(dataset.targets_per_row(), seq_len);
    if (const std::int64_t dropped = 30 % seq_len; dropped > 0)
      EXPECT_THAT(dataset.summary(), HasSubstr(fmt::format(", the last {} left out", dropped)));
    else
      EXPECT_THAT(dataset.summary(), Not(HasSubstr("left out")));
    for (std::int64_t index = 0; index < dataset.rows(); ++index) {
      const Row row = read_row(dataset, index);
      for (std::int64_t i = 0; i < seq_len; ++i) {
        EXPECT_EQ(row.tokens[static_cast<std::size_t>(i)], index * seq_len + i);
        EXPECT_EQ(row.targets[static_cast<std::size_t>(i)], index * seq_len + i + 1);
      }
    }
  }
  EXPECT_THAT(refusal(folder.path(), {.seq_len = 31, .vocab_size = 31}),
              HasSubstr("31 tokens do not fill one row of seq_len 31"));
}

TEST(TokenDataset, GivesDocumentStartsOfAStream) {
  const TemporaryFolder folder;
  const auto all = counting(17);
  write_shards(folder.path(),
               {{.tokens = {all.begin(), all.begin() + 7}, .document_starts = {{0, 2, 6}}},
                {.tokens = {all.begin() + 7, all.end()}, .document_starts = {{0, 8}}}},
               17);
  const auto dataset = TokenDataset::open(folder.path(), kSmallWithStarts);  // starts 0 2 6 7 15
  EXPECT_THAT(read_row(dataset, 0).document_start, ElementsAre(0, 0, 2, 2));
  EXPECT_THAT(read_row(dataset, 1).document_start, ElementsAre(0, 0, 2, 3));
  EXPECT_THAT(read_row(dataset, 2).document_start, ElementsAre(0, 0, 0, 0));
  EXPECT_THAT(read_row(dataset, 3).document_start, ElementsAre(0, 0, 0, 3));
  EXPECT_TRUE(read_row(TokenDataset::open(folder.path(), kSmall), 0).document_start.empty());
}

TEST(TokenDataset, GivesDocumentStartsOfRows) {
  const TemporaryFolder folder;
  write_shards(folder.path(),
               {{.tokens = counting(10), .row_length = 5, .document_starts = {{1, 3, 4, 7}}}}, 10);
  const auto dataset = TokenDataset::open(folder.path(), kSmallWithStarts);
  EXPECT_THAT(read_row(dataset, 0).document_start, ElementsAre(0, 1, 1, 3));
  EXPECT_THAT(read_row(dataset, 1).document_start, ElementsAre(0, 0, 2, 2));
}

TEST(TokenDataset, DocumentStartsMustBeThereWhenWanted) {
  const TemporaryFolder folder;
  write_shards(folder.path(), {{.tokens = counting(10)}}, 10);
  EXPECT_THAT(refusal(folder.path(), kSmallWithStarts), HasSubstr("do not list any"));
}

TEST(TokenDataset, VocabularyMayExceedTheDataNeverBeSmaller) {
  const TemporaryFolder folder;
  write_shards(folder.path(), {{.tokens = counting(10)}}, 50);
  EXPECT_NO_THROW(TokenDataset::open(folder.path(), {.seq_len = 4, .vocab_size = 50}));
  EXPECT_NO_THROW(TokenDataset::open(folder.path(), {.seq_len = 4, .vocab_size = 64}));
  EXPECT_THAT(refusal(folder.path(), {.seq_len = 4, .vocab_size = 49}),
              AllOf(HasSubstr("50 ids"), HasSubstr("vocab_size is 49")));
}

TEST(TokenDataset, TokensOutsideTheVocabularyAreFound) {
  for (const std::int64_t bad : {std::int64_t{50}, std::int64_t{-1}, std::int64_t{65535},
                                 std::int64_t{1} << 32, std::int64_t{1} << 62}) {
    const TemporaryFolder folder;
    auto tokens = counting(30);
    tokens[13] = bad;
    tokens[14] = bad;
    const char* type = bad == 65535 ? "uint16" : "int64";
    write_shards(folder.path(), {{.tokens = tokens, .row_length = 5, .type = type}}, 50);
    const auto rows = TokenDataset::open(folder.path(), {.seq_len = 5, .vocab_size = 64});
    EXPECT_NO_THROW(read_row(rows, 1));
    EXPECT_THAT(error_of(ErrorKind::kData, [&] { read_row(rows, 2); }),
                AllOf(HasSubstr("shard_00000.h5: row 2, column 3"),
                      HasSubstr(fmt::format("token {} is outside the vocabulary of 50", bad))));
    write_shards(folder / "stream", {{.tokens = tokens, .type = type}}, 50);
    const auto stream = TokenDataset::open(folder / "stream", {.seq_len = 5, .vocab_size = 64});
    EXPECT_THAT(error_of(ErrorKind::kData, [&] { read_row(stream, 2); }),
                HasSubstr(fmt::format("position 13: token {}", bad)));
  }
}

TEST(TokenDataset, TokensBeyondItsRangeAreNotGivenAnotherValue) {
  const TemporaryFolder folder;
  constexpr std::int64_t kLargest = std::numeric_limits<std::int64_t>::max();
  write_shards(folder.path(),
               {{.tokens = {1, 2, kLargest, 3, 4}, .row_length = 5, .type = "uint64"}}, 50);
  const auto rows = TokenDataset::open(folder.path(), {.seq_len = 5, .vocab_size = 64});
  EXPECT_THAT(error_of(ErrorKind::kData, [&] { read_row(rows, 0); }),
              HasSubstr("token 9223372036854775807 or more is outside"));
}

TEST(TokenDataset, SaysWhatItHolds) {
  const TemporaryFolder folder;
  write_shards(folder.path(), {{.tokens = counting(11)}}, 50, [](nlohmann::json& manifest) {
    manifest["source_bytes"] = 44;
    manifest["files"][0]["source_bytes"] = 44;
  });
  const auto dataset = TokenDataset::open(folder.path(), kSmall);
  EXPECT_EQ(dataset.manifest().bytes_per_token(), 4.0);
  EXPECT_THAT(dataset.summary(),
              AllOf(HasSubstr("2 rows, 4 targets each"), HasSubstr("stream cut every 4"),
                    HasSubstr("11 tokens in 1 shard, the last 2 left out"),
                    HasSubstr("vocabulary 50 of the model's 100")));
}

TEST(TokenDataset, FingerprintFollowsContentsAndOrder) {
  const TemporaryFolder folder;
  const ShardContents a{.tokens = counting(11)}, b{.tokens = some_tokens(12, 9)};
  const auto fingerprint = [&](const std::vector<ShardContents>& shards, std::int64_t vocab) {
    write_shards(folder.path(), shards, vocab);
    return ShardManifest::load(folder.path()).fingerprint();
  };
  const std::string first = fingerprint({a, b}, 50);
  EXPECT_EQ(fingerprint({a, b}, 50), first);
  EXPECT_NE(fingerprint({b, a}, 50), first);
  EXPECT_NE(fingerprint({a}, 50), first);
  EXPECT_NE(fingerprint({a, b}, 51), first);
  fingerprint({a, b}, 50);
  fs::rename(folder / "shard_00000.h5", folder / "z.h5");
  std::string text = read_text_file(folder / "manifest.json", 1 << 20);
  text.replace(text.find("shard_00000.h5"), 14, "z.h5");
  std::ofstream(folder / "manifest.json") << text;
  EXPECT_EQ(TokenDataset::open(folder.path(), kSmall).manifest().fingerprint(), first);
}

/// Sets how many descriptors the process may have, until the object goes away.
class DescriptorLimit {
 public:
  explicit DescriptorLimit(rlim_t descriptors) {
    EXPECT_EQ(::getrlimit(RLIMIT_NOFILE, &before_), 0);
    const rlimit limit{.rlim_cur = descriptors, .rlim_max = before_.rlim_max};
    EXPECT_EQ(::setrlimit(RLIMIT_NOFILE, &limit), 0);
  }
  ~DescriptorLimit() { ::setrlimit(RLIMIT_NOFILE, &before_); }

 private:
  rlimit before_{};
};

TEST(TokenDataset, MoreShardsThanOpenFilesAreServed) {
  const TemporaryFolder folder;
  std::vector<ShardContents> shards;
  for (int i = 0; i < 150; ++i)
    shards.push_back({.tokens = {i, i + 1, i + 2, 100 + i, i}, .row_length = 5});
  write_shards(folder.path(), shards, 1000);
  const auto open_shards = [&] {
    return std::ranges::count_if(fs::directory_iterator("/proc/self/fd"), [&](const auto& file) {
      std::error_code gone;
      return fs::read_symlink(file, gone).parent_path() == fs::canonical(folder.path());
    });
  };
  for (const auto& [descriptors, open] : {std::pair(120, 40), std::pair(600, 150)}) {
    const DescriptorLimit limit(static_cast<rlim_t>(descriptors));
    const auto dataset = TokenDataset::open(folder.path(), {.seq_len = 4, .vocab_size = 1000});
    for (int i = 0; i < 300; ++i) {
      const int row = i * 67 % 150;
      EXPECT_EQ(read_row(dataset, row).tokens[3], 100 + row);
    }
    EXPECT_EQ(open_shards(), open);
  }
}

// What the manifest must catch.

struct DamagedShard : testing::Test {
  void SetUp() override {
    write_shards(folder.path(),
                 {{.tokens = some_tokens(3000, 100),
                   .row_length = 5,
                   .document_starts = {{0, 5, 2000}},
                   .chunk = 100}},
                 100);
    bytes = read_text_file(shard, 1 << 20);
    TokenDataset::open(folder.path(), kSmallWithStarts);
  }
  void write(const std::string& contents) { std::ofstream(shard, std::ios::binary) << contents; }

  TemporaryFolder folder;
  fs::path shard = folder / "shard_00000.h5";
  std::string bytes;
};

TEST_F(DamagedShard, TruncationsAreRefused) {
  for (std::size_t i = 0; i < 200; ++i) {
    const std::size_t length = bytes.size() * i / 200;
    write(bytes.substr(0, length));
    EXPECT_THAT(refusal(folder.path(), kSmall),
                AllOf(HasSubstr("shard_00000.h5"), HasSubstr(fmt::format("{} bytes", length))));
  }
}

TEST_F(DamagedShard, BitFlipsAreRefused) {
  for (std::size_t i = 0; i < 500; ++i) {
    const std::size_t place = i < 250 ? i * 12 % 3000 : (i - 250) * bytes.size() / 250;
    std::string damaged = bytes;
    damaged[place] = static_cast<char>(damaged[place] ^ (1 << i % 8));
    write(damaged);
    EXPECT_THAT(refusal(folder.path(), kSmall), HasSubstr("its contents have hash")) << place;
  }
}

TEST_F(DamagedShard, ManifestBitFlipsAreRefused) {
  const std::string manifest = read_text_file(folder / "manifest.json", 1 << 20);
  for (std::size_t i = 0; i < 8 * manifest.size(); i += 3) {
    std::string damaged = manifest;
    damaged[i / 8] = static_cast<char>(damaged[i / 8] ^ (1 << i % 8));
    std::ofstream(folder / "manifest.json", std::ios::binary) << damaged;
    // One thing only is not repeated elsewhere in shards that carry no attributes.
    if (damaged.find("\"vocab_size\": 100\n") == std::string::npos) continue;
    EXPECT_NE(refusal(folder.path(), kSmall), "") << damaged;
  }
}

TEST_F(DamagedShard, OtherKindsOfFilesAreRefused) {
  fs::remove(shard);
  EXPECT_THAT(refusal(folder.path(), kSmall), HasSubstr("missing, but listed"));
  fs::create_directory(shard);
  EXPECT_THAT(refusal(folder.path(), kSmall), HasSubstr("not a regular file"));
  fs::remove(shard);
  ASSERT_EQ(::mkfifo(shard.c_str(), 0600), 0);
  EXPECT_THAT(refusal(folder.path(), kSmall), HasSubstr("not a regular file"));
}

TEST_F(DamagedShard, TokenizerFilesAreVerifiedToo) {
  write_manifest(
      folder.path(),
      {{.tokens = some_tokens(3000, 100), .row_length = 5, .document_starts = {{0, 5, 2000}}}}, 100,
      [](nlohmann::json& manifest) {
        manifest["tokenizer_files"] = {
            {{"name", "tokenizer.json"}, {"bytes", 2}, {"xxh3", "0123456789abcdef"}}};
      });
  EXPECT_THAT(refusal(folder.path(), kSmall), HasSubstr("tokenizer.json: missing"));
  std::ofstream(folder / "tokenizer.json") << "{}";
  EXPECT_THAT(refusal(folder.path(), kSmall), HasSubstr("tokenizer.json: its contents have hash"));
}

TEST(TokenDataset, TheFirstDamagedFileIsNamedWhateverTheThreads) {
  const TemporaryFolder folder;
  std::vector<ShardContents> shards;
  for (int i = 0; i < 20; ++i) shards.push_back({.tokens = {i, i, i, i, i}, .row_length = 5});
  write_shards(folder.path(), shards, 100);
  for (const char* name : {"shard_00017.h5", "shard_00004.h5"})
    std::fstream(folder / name, std::ios::in | std::ios::out).seekp(100).put('x');
  for (const int threads : {1, 3, 50}) {
    EXPECT_THAT(
        refusal(folder.path(), {.seq_len = 4, .vocab_size = 100, .verify = {.threads = threads}}),
        HasSubstr("shard_00004.h5: its contents"));
  }
}

TEST(TokenDataset, ShardsThatChangeUnderItAreNotReadOn) {
  const TemporaryFolder folder;
  const fs::path path = folder / "shard_00000.h5";
  write_shards(folder.path(), {{.tokens = some_tokens(3000, 100), .chunk = 0}}, 100);
  const auto bytes = fs::file_size(path);
  const auto dataset = TokenDataset::open(folder.path(), kSmall);
  const auto said = [&] { return error_of(ErrorKind::kData, [&] { read_row(dataset, 700); }); };
  EXPECT_NO_THROW(read_row(dataset, 700));
  fs::resize_file(path, 3000);  // HDF5 would read zeros
  EXPECT_THAT(said(), HasSubstr(fmt::format("{}: changed while it was in use: it had {} bytes and "
                                            "has 3000",
                                            path.string(), bytes)));
  fs::resize_file(path, bytes);
  EXPECT_THAT(said(), HasSubstr("another modification time"));
}

TEST(TokenDataset, ShardsThatWereReplacedAreNotReadOn) {
  const TemporaryFolder folder;
  std::vector<ShardContents> shards;
  for (int i = 0; i < 50; ++i) shards.push_back({.tokens = {i, i, i, i, i}, .row_length = 5});
  write_shards(folder.path(), shards, 50);
  const DescriptorLimit limit(120);  // of which 40 shards may take one each
  const auto dataset = TokenDataset::open(folder.path(), kSmall);
  const auto replace = [&](const char* name) {
    write_shard(folder / "new.h5", {.tokens = {9, 9, 9, 9, 9}, .row_length = 5});
    fs::rename(folder / "new.h5", folder / name);
  };
  replace("shard_00049.h5");
  EXPECT_EQ(read_row(dataset, 49).tokens[0], 49);  // still open, and still what it was
  replace("shard_00000.h5");
  EXPECT_THAT(error_of(ErrorKind::kData, [&] { read_row(dataset, 0); }),
              HasSubstr("shard_00000.h5: changed while it was in use"));
}

TEST(TokenDataset, FoldersWithoutShardsAreRefused) {
  const TemporaryFolder folder;
  EXPECT_THAT(refusal(folder / "absent", kSmall), HasSubstr("absent: no such folder"));
  EXPECT_THAT(refusal(folder.path(), kSmall), HasSubstr("manifest.json: missing"));
  std::ofstream(folder / "file") << "";
  EXPECT_THAT(refusal(folder / "file", kSmall), HasSubstr("no such folder"));
  fs::create_directory(folder / "manifest.json");
  EXPECT_THAT(refusal(folder.path(), kSmall), HasSubstr("manifest.json"));
}

TEST(TokenDataset, WhatTheSystemRefusesIsNoFaultOfTheData) {
  const TemporaryFolder folder;
  const fs::path loop = folder / "manifest.json";
  fs::create_symlink(loop, loop);
  for (const fs::path& path : {loop, folder.path()}) {
    EXPECT_THAT(error_of(ErrorKind::kIo, [&] { TokenDataset::open(path, kSmall); }),
                HasSubstr("manifest.json': Too many levels of symbolic links"));
  }
}

TEST(TokenDataset, ManifestsThatContradictAreRefused) {
  const TemporaryFolder folder;
  const std::vector<ShardContents> shards{{.tokens = counting(10), .row_length = 5},
                                          {.tokens = some_tokens(10, 9), .row_length = 5}};
  write_shards(folder.path(), shards, 50);
  const std::pair<ManifestChange, const char*> cases[] = {
      {[](auto& m) { m["format"] = "other"; }, "format: 'other'"},
      {[](auto& m) { m["format_version"] = 2; }, "format_version: 2"},
      {[](auto& m) { m["layout"] = "heap"; }, "layout: 'heap'"},
      {[](auto& m) { m.erase("row_length"); }, "row_length"},
      {[](auto& m) { m["row_length"] = 4; }, "tokens: 10 tokens are not 2 rows of 4"},
      {[](auto& m) { m["row_length"] = 0; }, "row_length: 0 tokens"},
      {[](auto& m) { m["row_length"] = -5; }, "row_length: -5 is negative"},
      {[](auto& m) { m["layout"] = "stream"; }, "row_length: a stream has no rows"},
      {[](auto& m) { m["vocab_size"] = 0; }, "vocab_size: 0"},
      {[](auto& m) { m["vocab_size"] = "50"; }, "vocab_size"},
      {[](auto& m) { m["eos_token_id"] = 50; }, "eos_token_id: 50 is outside"},
      {[](auto& m) { m["tokens"] = 21; }, "tokens: 21, the files have 20"},
      {[](auto& m) { m["source_bytes"] = 5; }, "disagree on having source_bytes"},
      {[](auto& m) { m["colour"] = 5; }, "colour: unknown key"},
      {[](auto& m) { m["files"][0]["colour"] = 5; }, "colour: unknown key"},
      {[](auto& m) { m["files"] = nlohmann::json::array(); }, "files: no shards"},
      {[](auto& m) { m["files"] = 5; }, "files"},
      {[](auto& m) { m["files"][1]["name"] = "shard_00000.h5"; }, "is listed twice"},
      {[](auto& m) { m["files"][1]["xxh3"] = m["files"][0]["xxh3"]; }, "has the contents of"},
      {[](auto& m) { m["files"][1]["name"] = "../shard_00001.h5"; }, "not a plain file name"},
      {[](auto& m) { m["files"][1]["name"] = "/etc/passwd"; }, "not a plain file name"},
      {[](auto& m) { m["files"][1]["name"] = ".."; }, "not a plain file name"},
      {[](auto& m) { m["files"][1]["name"] = std::string("a\0b", 3); }, "not a plain file name"},
      {[](auto& m) { m["files"][1]["xxh3"] = "XYZ"; }, "not 16 hexadecimal digits"},
      {[](auto& m) { m["files"][1]["documents"] = 2; }, "only one of"},
      {[](auto& m) { m["files"][1]["rows"] = 3; }, "10 tokens are not 3 rows of 5"},
  };
  for (const auto& [change, message] : cases) {
    write_manifest(folder.path(), shards, 50, change);
    EXPECT_THAT(refusal(folder.path(), kSmall),
                AllOf(HasSubstr("manifest.json"), HasSubstr(message)));
  }
}

TEST(TokenDataset, ShardsThatContradictTheManifestAreRefused) {
  const TemporaryFolder folder;
  const ShardContents rows{.tokens = counting(20), .row_length = 5};
  const auto claim = [&](const ShardContents& written, const ShardContents& claimed) {
    write_shard(folder / "shard_00000.h5", written);
    write_manifest(folder.path(), {claimed}, 50);
    return refusal(folder.path(), kSmall);
  };
  EXPECT_THAT(claim({.tokens = counting(20)}, rows), HasSubstr("rows of 0 tokens"));
  EXPECT_THAT(claim({.tokens = counting(20), .row_length = 4}, rows),
              HasSubstr("rows of 4 tokens, manifest.json says 5"));
  EXPECT_THAT(claim({.tokens = counting(25), .row_length = 5}, rows),
              HasSubstr("25 tokens, manifest.json says 20"));
  EXPECT_THAT(claim({.tokens = counting(20), .row_length = 5, .document_starts = {{0}}}, rows),
              HasSubstr("1 document starts, manifest.json says -1"));
  for (const char* name : {"format_version", "vocab_size", "tokens", "source_bytes", "documents",
                           "bos_token_id", "eos_token_id", "pad_token_id"}) {
    ShardContents shard = rows;
    shard.attributes[name] = 7;
    EXPECT_THAT(claim(shard, rows), HasSubstr(fmt::format("attribute `{}` is 7, manifest", name)));
  }
  ShardContents without = rows;
  without.attributes = {{"source_bytes", -1}};
  EXPECT_THAT(claim(without, rows),
              HasSubstr("attribute `source_bytes` is -1, manifest.json says nothing"));
  ShardContents agreeing = rows;
  agreeing.attributes = {{"format_version", 1}, {"vocab_size", 50}, {"tokens", 20}, {"other", 7}};
  write_shards(folder.path(), {agreeing}, 50);
  EXPECT_NO_THROW(TokenDataset::open(folder.path(), kSmall));
}

TEST(TokenDataset, EmptyAndSmallestFolders) {
  const TemporaryFolder folder;
  write_shards(folder.path(), {{.tokens = {}, .row_length = 5}}, 50);
  EXPECT_THAT(refusal(folder.path(), kSmall), HasSubstr("has no rows"));
  write_shards(folder.path(), {{.tokens = {}}}, 50);
  EXPECT_THAT(refusal(folder.path(), kSmall), HasSubstr("0 tokens do not fill one row"));
  write_shards(folder.path(), {{.tokens = counting(5), .row_length = 5}}, 50);
  EXPECT_EQ(TokenDataset::open(folder.path(), kSmall).rows(), 1);
}

}  // namespace
}  // namespace jiboia
