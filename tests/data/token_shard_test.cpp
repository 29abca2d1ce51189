#include "data/token_shard.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <hdf5.h>
#include <sys/resource.h>

#include <fstream>

#include "tests/data/shard_files.h"
#include "tests/support/temporary_folder.h"

namespace jiboia {
namespace {

namespace fs = std::filesystem;
using testing::AllOf;
using testing::HasSubstr;

std::vector<std::int64_t> read_all(const TokenShard& shard) {
  std::vector<std::int64_t> values(static_cast<std::size_t>(shard.tokens()));
  shard.read_tokens(0, values);
  return values;
}

std::string refusal(const fs::path& path) {
  return error_of(ErrorKind::kData, [&] { TokenShard shard(path); });
}

/// Makes an HDF5 file whose contents `fill` creates.
fs::path make_file(const fs::path& path, const std::function<void(hid_t)>& fill) {
  const hid_t file = H5Fcreate(path.c_str(), H5F_ACC_TRUNC, H5P_DEFAULT, H5P_DEFAULT);
  fill(file);
  EXPECT_GE(H5Fclose(file), 0);
  return path;
}

/// Creates `tokens` of type uint16 with given extents and creation properties, and writes nothing.
void create_tokens(hid_t file, const std::vector<hsize_t>& extents, hid_t properties,
                   hid_t type = H5T_STD_U16LE) {
  const hid_t space = H5Screate_simple(static_cast<int>(extents.size()), extents.data(), nullptr);
  const hid_t set = H5Dcreate2(file, "tokens", type, space, H5P_DEFAULT, properties, H5P_DEFAULT);
  EXPECT_GE(set, 0);
  H5Dclose(set);
  H5Sclose(space);
}

hid_t chunked(const std::vector<hsize_t>& chunk) {
  const hid_t properties = H5Pcreate(H5P_DATASET_CREATE);
  H5Pset_chunk(properties, static_cast<int>(chunk.size()), chunk.data());
  return properties;
}

TEST(TokenShard, ReadsStreamsAndRowsOfEveryIntegerType) {
  const TemporaryFolder folder;
  const auto tokens = some_tokens(600, 100);
  for (const char* type :
       {"uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64", "uint16be"}) {
    for (const std::int64_t row_length : {0, 1, 30, 600}) {
      for (const bool deflate : {false, true}) {
        SCOPED_TRACE(fmt::format("{} {} {}", type, row_length, deflate));
        write_shard(folder / "x.h5", {.tokens = tokens,
                                      .row_length = row_length,
                                      .type = type,
                                      .chunk = row_length == 600 ? 1 : 7,
                                      .deflate = deflate});
        const TokenShard shard(folder / "x.h5");
        EXPECT_EQ(shard.tokens(), 600);
        EXPECT_EQ(shard.row_length(), row_length);
        EXPECT_FALSE(shard.documents().has_value());
        EXPECT_EQ(read_all(shard), tokens);
      }
    }
  }
}

TEST(TokenShard, ReadsParts) {
  const TemporaryFolder folder;
  const auto tokens = some_tokens(600, 60000);
  write_shard(folder / "stream.h5", {.tokens = tokens});
  write_shard(folder / "rows.h5", {.tokens = tokens, .row_length = 20, .chunk = 3});
  const TokenShard stream(folder / "stream.h5"), rows(folder / "rows.h5");
  std::vector<std::int64_t> part(100);
  stream.read_tokens(37, part);
  EXPECT_TRUE(std::equal(part.begin(), part.end(), tokens.begin() + 37));
  rows.read_tokens(40, part);
  EXPECT_TRUE(std::equal(part.begin(), part.end(), tokens.begin() + 40));
  EXPECT_THROW(stream.read_tokens(501, part), Error);
  EXPECT_THROW(stream.read_tokens(-1, part), Error);
  EXPECT_THROW(rows.read_tokens(37, part), Error);
}

TEST(TokenShard, KeepsValuesThatAreNoTokens) {  // for the range check to see
  const TemporaryFolder folder;
  write_shard(folder / "x.h5", {.tokens = {5, -1, std::int64_t{1} << 40}, .type = "int64"});
  EXPECT_EQ(read_all(TokenShard(folder / "x.h5")),
            (std::vector<std::int64_t>{5, -1, std::int64_t{1} << 40}));
}

TEST(TokenShard, ReadsContiguousData) {
  const TemporaryFolder folder;
  const auto tokens = some_tokens(100, 60000);
  write_shard(folder / "x.h5", {.tokens = tokens, .chunk = 0});
  EXPECT_EQ(read_all(TokenShard(folder / "x.h5")), tokens);
}

TEST(TokenShard, ReadsDocumentStarts) {
  const TemporaryFolder folder;
  write_shard(folder / "x.h5", {.tokens = some_tokens(50, 9), .document_starts = {{0, 7, 49}}});
  const TokenShard shard(folder / "x.h5");
  EXPECT_EQ(shard.documents(), 3);
  EXPECT_EQ(shard.read_document_starts(), (std::vector<std::int64_t>{0, 7, 49}));
}

TEST(TokenShard, RefusesDocumentStartsThatCannotBe) {
  const TemporaryFolder folder;
  for (const auto& starts : {std::vector<std::int64_t>{0, 7, 7}, {0, 9, 8}, {-1, 3}, {0, 50}}) {
    write_shard(folder / "x.h5", {.tokens = some_tokens(50, 9), .document_starts = starts});
    const TokenShard shard(folder / "x.h5");
    EXPECT_THAT(error_of(ErrorKind::kData, [&] { shard.read_document_starts(); }),
                AllOf(HasSubstr("x.h5"), HasSubstr("document_starts[")));
  }
  write_shard(folder / "x.h5", {.tokens = {1, 2}, .document_starts = {{0, 1, 2}}});
  EXPECT_THAT(refusal(folder / "x.h5"), HasSubstr("3 document starts for 2 tokens"));
}

TEST(TokenShard, ReadsIntegerAttributes) {
  const TemporaryFolder folder;
  const fs::path path = make_file(folder / "x.h5", [](hid_t file) {
    const hid_t scalar = H5Screate(H5S_SCALAR);
    const std::int64_t value = 32000;
    const hid_t good =
        H5Acreate2(file, "vocab_size", H5T_STD_U32LE, scalar, H5P_DEFAULT, H5P_DEFAULT);
    H5Awrite(good, H5T_NATIVE_INT64, &value);
    const hid_t bad = H5Acreate2(file, "tokens", H5T_IEEE_F32LE, scalar, H5P_DEFAULT, H5P_DEFAULT);
    H5Aclose(good);
    H5Aclose(bad);
    H5Sclose(scalar);
    create_tokens(file, {4}, H5P_DEFAULT);
  });
  std::ofstream(path, std::ios::app) << "12345678";  // room for the extents that were not written
  const TokenShard shard(path);
  EXPECT_EQ(shard.attribute("vocab_size"), 32000);
  EXPECT_EQ(shard.attribute("absent"), std::nullopt);
  EXPECT_THAT(error_of(ErrorKind::kData, [&] { shard.attribute("tokens"); }),
              HasSubstr("attribute `tokens` is not an integer"));
}

TEST(TokenShard, RefusesWhatIsNotThere) {
  const TemporaryFolder folder;
  std::ofstream(folder / "text.h5") << "not HDF5 at all, but long enough to look into";
  EXPECT_THAT(refusal(folder / "text.h5"), HasSubstr("not an HDF5 file"));
  EXPECT_THAT(refusal(folder / "absent.h5"), HasSubstr("absent.h5: not an HDF5 file"));
  EXPECT_THAT(refusal(folder.path()), HasSubstr("not an HDF5 file"));
  EXPECT_THAT(refusal(make_file(folder / "empty.h5", [](hid_t) {})),
              HasSubstr("there is: nothing"));
}

TEST(TokenShard, RefusesOtherDatasetsAndListsThem) {
  const TemporaryFolder folder;
  const auto write_named = [&](const char* name, bool with_tokens) {
    return make_file(folder / "x.h5", [&](hid_t file) {
      const hsize_t extents[2] = {3, 5};
      const hid_t space = H5Screate_simple(2, extents, nullptr);
      H5Dclose(
          H5Dcreate2(file, name, H5T_IEEE_F32LE, space, H5P_DEFAULT, H5P_DEFAULT, H5P_DEFAULT));
      H5Sclose(space);
      if (with_tokens) create_tokens(file, {4}, H5P_DEFAULT);
    });
  };
  EXPECT_THAT(refusal(write_named("input_ids", false)), HasSubstr("input_ids: float32 (3, 5)"));
  EXPECT_THAT(refusal(write_named("input_ids", true)), HasSubstr("input_ids: float32 (3, 5)"));
  EXPECT_THAT(refusal(write_named(std::string(5000, 'n').c_str(), true)), HasSubstr("nnnn"));
  const fs::path group = make_file(folder / "x.h5", [](hid_t file) {
    H5Gclose(H5Gcreate2(file, "tokens", H5P_DEFAULT, H5P_DEFAULT, H5P_DEFAULT));
  });
  EXPECT_THAT(refusal(group), HasSubstr("cannot open `tokens`"));
}

TEST(TokenShard, RefusesTypesThatAreNotIntegers) {
  const TemporaryFolder folder;
  for (const char* type : {"float32", "float64"}) {
    write_shard(folder / "x.h5", {.tokens = some_tokens(9, 9), .type = type});
    EXPECT_THAT(refusal(folder / "x.h5"),
                AllOf(HasSubstr("`tokens` is float"), HasSubstr("expected integers")));
  }
  const hid_t packed = H5Tcopy(H5T_STD_U16LE);
  H5Tset_precision(packed, 12);
  const hid_t pair = H5Tcreate(H5T_COMPOUND, 4);
  H5Tinsert(pair, "a", 0, H5T_STD_U16LE);
  const hid_t text = H5Tcopy(H5T_C_S1);
  H5Tset_size(text, 4);
  const hsize_t four = 4;
  const hid_t array = H5Tarray_create2(H5T_STD_U16LE, 1, &four);
  for (const hid_t type : {packed, pair, text, array}) {
    EXPECT_THAT(
        refusal(make_file(folder / "x.h5",
                          [&](hid_t file) { create_tokens(file, {4}, H5P_DEFAULT, type); })),
        HasSubstr("expected integers of 1, 2, 4 or 8 bytes"));
  }
}

TEST(TokenShard, RefusesOtherShapes) {
  const TemporaryFolder folder;
  const auto with_extents = [&](const std::vector<hsize_t>& extents) {
    return refusal(
        make_file(folder / "x.h5", [&](hid_t file) { create_tokens(file, extents, H5P_DEFAULT); }));
  };
  EXPECT_THAT(with_extents({2, 2, 2}), HasSubstr("`tokens` has rank 3"));
  EXPECT_THAT(with_extents({}), HasSubstr("`tokens` has rank 0"));
  EXPECT_THAT(with_extents({5, 0}), HasSubstr("rows of 0 tokens"));
}

TEST(TokenShard, RefusesLinks) {
  const TemporaryFolder folder;
  write_shard(folder / "target.h5", {.tokens = some_tokens(9, 9)});
  const fs::path external = make_file(folder / "external.h5", [](hid_t file) {
    H5Lcreate_external("target.h5", "/tokens", file, "tokens", H5P_DEFAULT, H5P_DEFAULT);
  });
  EXPECT_THAT(refusal(external), HasSubstr("tokens: external link"));
  const fs::path loop = make_file(folder / "loop.h5", [](hid_t file) {
    H5Lcreate_soft("/tokens", file, "tokens", H5P_DEFAULT, H5P_DEFAULT);
  });
  EXPECT_THAT(refusal(loop), HasSubstr("tokens: soft link"));
  const fs::path hard_loop = make_file(folder / "hard_loop.h5", [](hid_t file) {
    H5Lcreate_hard(file, "/", file, "tokens", H5P_DEFAULT, H5P_DEFAULT);
  });
  EXPECT_THAT(refusal(hard_loop), HasSubstr("cannot open `tokens`"));
}

TEST(TokenShard, DoesNotCallAFileBadThatTheSystemDoesNotOpen) {
  const TemporaryFolder folder;
  write_shard(folder / "good.h5", {.tokens = {1, 2, 3}});
  rlimit before{};
  ASSERT_EQ(::getrlimit(RLIMIT_NOFILE, &before), 0);
  const rlimit none{.rlim_cur = 3, .rlim_max = before.rlim_max};  // the standard streams
  ASSERT_EQ(::setrlimit(RLIMIT_NOFILE, &none), 0);
  const std::string said = error_of(ErrorKind::kIo, [&] { TokenShard shard(folder / "good.h5"); });
  ASSERT_EQ(::setrlimit(RLIMIT_NOFILE, &before), 0);
  EXPECT_THAT(said, HasSubstr("good.h5': Too many open files"));
}

TEST(TokenShard, RefusesDataOutsideTheFile) {
  const TemporaryFolder folder;
  const fs::path external = make_file(folder / "external.h5", [](hid_t file) {
    const hid_t properties = H5Pcreate(H5P_DATASET_CREATE);
    H5Pset_external(properties, "/etc/passwd", 0, 64);
    create_tokens(file, {32}, properties);
    H5Pclose(properties);
  });
  EXPECT_THAT(refusal(external), HasSubstr("external files"));
  const fs::path virtual_data = make_file(folder / "virtual.h5", [](hid_t file) {
    const hsize_t extent = 8;
    const hid_t space = H5Screate_simple(1, &extent, nullptr);
    const hid_t properties = H5Pcreate(H5P_DATASET_CREATE);
    H5Pset_virtual(properties, space, "/etc/passwd", "/tokens", space);
    create_tokens(file, {8}, properties);
    H5Pclose(properties);
    H5Sclose(space);
  });
  EXPECT_THAT(refusal(virtual_data), HasSubstr("virtual"));
}

TEST(TokenShard, RefusesFiltersAndChunksBeyondTheFormat) {
  const TemporaryFolder folder;
  const auto with_properties = [&](const std::vector<hsize_t>& extents, hid_t properties) {
    const fs::path path =
        make_file(folder / "x.h5", [&](hid_t file) { create_tokens(file, extents, properties); });
    H5Pclose(properties);
    return refusal(path);
  };
  const hid_t scale_offset = chunked({8});
  H5Pset_scaleoffset(scale_offset, H5Z_SO_INT, 0);
  EXPECT_THAT(with_properties({8}, scale_offset), HasSubstr("uses filter 6"));
  const hid_t unknown = chunked({8});
  H5Pset_filter(unknown, 32001, H5Z_FLAG_OPTIONAL, 0, nullptr);
  EXPECT_THAT(with_properties({8}, unknown), HasSubstr("uses filter 32001"));
  EXPECT_THAT(with_properties({hsize_t{1} << 32}, chunked({(hsize_t{1} << 31) - 1})),
              HasSubstr("chunks of more than 67108864 bytes"));
  EXPECT_THAT(with_properties({(hsize_t{64} << 20) + 2}, chunked({(hsize_t{32} << 20) + 1})),
              HasSubstr("chunks of more than 67108864 bytes"));
  const hid_t unlimited = chunked({8, 8});
  const fs::path wide = make_file(folder / "x.h5", [&](hid_t file) {
    const hsize_t extents[2] = {8, 4}, limits[2] = {8, H5S_UNLIMITED};
    const hid_t space = H5Screate_simple(2, extents, limits);
    H5Dclose(H5Dcreate2(file, "tokens", H5T_STD_U16LE, space, H5P_DEFAULT, unlimited, H5P_DEFAULT));
    H5Sclose(space);
  });
  H5Pclose(unlimited);
  EXPECT_THAT(refusal(wide), HasSubstr("chunks 8 wide, its rows have 4"));
}

TEST(TokenShard, RefusesExtentsThatTheFileCannotHold) {
  const TemporaryFolder folder;
  for (const bool deflate : {false, true}) {  // 10^12 rows of nothing, and more than 2^63 tokens
    for (const std::vector<hsize_t>& extents :
         {std::vector<hsize_t>{1'000'000'000'000, 2048}, {hsize_t{1} << 40, hsize_t{1} << 40}}) {
      const hid_t properties = chunked({4, 2048});
      if (deflate) H5Pset_deflate(properties, 9);
      const fs::path path =
          make_file(folder / "x.h5", [&](hid_t file) { create_tokens(file, extents, properties); });
      H5Pclose(properties);
      EXPECT_THAT(refusal(path), HasSubstr("can hold"));
    }
  }
}

}  // namespace
}  // namespace jiboia
