// A shard above 4 GiB and 2^31 tokens. The file is sparse: only its ends are written.
#include <gtest/gtest.h>
#include <hdf5.h>

#include <vector>

#include "data/token_dataset.h"
#include "tests/data/shard_files.h"
#include "tests/support/temporary_folder.h"

namespace jiboia {
namespace {

constexpr hsize_t kTokens = (hsize_t{1} << 31) + (1 << 20);
constexpr hsize_t kWritten = 5000;  // tokens at the end

void write_sparse_shard(const std::filesystem::path& path,
                        const std::vector<std::int64_t>& last_tokens) {
  const hid_t file = H5Fcreate(path.c_str(), H5F_ACC_TRUNC, H5P_DEFAULT, H5P_DEFAULT);
  const hid_t space = H5Screate_simple(1, &kTokens, nullptr);
  const hid_t properties = H5Pcreate(H5P_DATASET_CREATE);
  H5Pset_alloc_time(properties, H5D_ALLOC_TIME_EARLY);
  H5Pset_fill_time(properties, H5D_FILL_TIME_NEVER);
  const hid_t set =
      H5Dcreate2(file, "tokens", H5T_STD_U16LE, space, H5P_DEFAULT, properties, H5P_DEFAULT);
  const hsize_t start = kTokens - kWritten;
  const hid_t memory = H5Screate_simple(1, &kWritten, nullptr);
  H5Sselect_hyperslab(space, H5S_SELECT_SET, &start, nullptr, &kWritten, nullptr);
  ASSERT_GE(H5Dwrite(set, H5T_NATIVE_INT64, memory, space, H5P_DEFAULT, last_tokens.data()), 0);
  H5Dclose(set);
  H5Pclose(properties);
  H5Sclose(memory);
  H5Sclose(space);
  ASSERT_GE(H5Fclose(file), 0);
}

TEST(TokenDatasetLarge, ReadsTheRightRowsBeyond32Bits) {
  const TemporaryFolder folder;
  const auto last_tokens = some_tokens(kWritten, 60000);
  write_sparse_shard(folder / "shard_00000.h5", last_tokens);
  ASSERT_GT(std::filesystem::file_size(folder / "shard_00000.h5"), std::uintmax_t{1} << 32);
  write_manifest(folder.path(), {{.tokens = {}}}, 60000, [](nlohmann::json& manifest) {
    manifest["tokens"] = kTokens;
    manifest["files"][0]["tokens"] = kTokens;
  });
  const auto dataset = TokenDataset::open(folder.path(), {.seq_len = 1000, .vocab_size = 60000});
  EXPECT_EQ(dataset.rows(), (kTokens - 1) / 1000);
  std::vector<std::int32_t> tokens(1000), targets(1000);
  dataset.read_row(0, {tokens, targets, {}});
  EXPECT_EQ(tokens, std::vector<std::int32_t>(1000, 0));
  for (std::int64_t row = dataset.rows() - 4; row < dataset.rows(); ++row) {
    dataset.read_row(row, {tokens, targets, {}});
    for (std::size_t i = 0; i < 1000; ++i) {
      const std::size_t place = static_cast<std::size_t>(row) * 1000 + i - (kTokens - kWritten);
      ASSERT_EQ(tokens[i], last_tokens[place]);
      ASSERT_EQ(targets[i], last_tokens[place + 1]);
    }
  }
}

}  // namespace
}  // namespace jiboia
