#include "tests/data/shard_files.h"

#include <gtest/gtest.h>
#include <hdf5.h>

#include <fstream>
#include <map>
#include <stdexcept>

#include "data/file.h"

namespace jiboia {
namespace {

namespace fs = std::filesystem;

hid_t type_of(const std::string& name) {
  const std::map<std::string, hid_t> types = {
      {"uint8", H5T_STD_U8LE},     {"uint16", H5T_STD_U16LE},  {"uint32", H5T_STD_U32LE},
      {"uint64", H5T_STD_U64LE},   {"int8", H5T_STD_I8LE},     {"int16", H5T_STD_I16LE},
      {"int32", H5T_STD_I32LE},    {"int64", H5T_STD_I64LE},   {"uint16be", H5T_STD_U16BE},
      {"float32", H5T_IEEE_F32LE}, {"float64", H5T_IEEE_F64LE}};
  return types.at(name);
}

void require_success(bool succeeded) {
  if (!succeeded) throw std::runtime_error("the test could not write an HDF5 file");
}

void write_dataset(hid_t file, const char* name, const std::vector<std::int64_t>& values,
                   std::int64_t row_length, const ShardContents& how, const char* type) {
  const hsize_t width = row_length > 0 ? static_cast<hsize_t>(row_length) : 1;
  const hsize_t extents[2] = {values.size() / width, width};
  const hsize_t chunk[2] = {static_cast<hsize_t>(how.chunk), width};
  const hsize_t limits[2] = {H5S_UNLIMITED, width};
  const int rank = row_length > 0 ? 2 : 1;
  const hid_t space = H5Screate_simple(rank, extents, how.chunk > 0 ? limits : nullptr);
  const hid_t properties = H5Pcreate(H5P_DATASET_CREATE);
  require_success(H5Pset_obj_track_times(properties, false) >= 0);  // equal contents, equal bytes
  if (how.chunk > 0) {
    H5Pset_chunk(properties, rank, chunk);
    if (how.deflate) {
      H5Pset_shuffle(properties);
      H5Pset_deflate(properties, 6);
    }
    H5Pset_fletcher32(properties);
  }
  const hid_t set =
      H5Dcreate2(file, name, type_of(type), space, H5P_DEFAULT, properties, H5P_DEFAULT);
  require_success(set >= 0);
  if (!values.empty())
    require_success(H5Dwrite(set, H5T_NATIVE_INT64, H5S_ALL, H5S_ALL, H5P_DEFAULT, values.data()) >=
                    0);
  H5Dclose(set);
  H5Pclose(properties);
  H5Sclose(space);
}

}  // namespace

void write_shard(const fs::path& path, const ShardContents& contents) {
  const hid_t file = H5Fcreate(path.c_str(), H5F_ACC_TRUNC, H5P_DEFAULT, H5P_DEFAULT);
  require_success(file >= 0);
  write_dataset(file, "tokens", contents.tokens, contents.row_length, contents, contents.type);
  if (contents.document_starts)
    write_dataset(file, "document_starts", *contents.document_starts, 0, contents, "int64");
  for (const auto& [name, value] : contents.attributes) {
    const hid_t scalar = H5Screate(H5S_SCALAR);
    const hid_t attribute =
        H5Acreate2(file, name.c_str(), H5T_STD_I64LE, scalar, H5P_DEFAULT, H5P_DEFAULT);
    require_success(H5Awrite(attribute, H5T_NATIVE_INT64, &value) >= 0);
    H5Aclose(attribute);
    H5Sclose(scalar);
  }
  require_success(H5Fclose(file) >= 0);
}

void write_manifest(const fs::path& folder, const std::vector<ShardContents>& shards,
                    std::int64_t vocab_size, const ManifestChange& change) {
  nlohmann::json files = nlohmann::json::array();
  std::int64_t tokens = 0;
  for (std::size_t i = 0; i < shards.size(); ++i) {
    const std::string name = fmt::format("shard_{:05}.h5", i);
    const FileDigest digest = digest_file(folder / name);
    nlohmann::json entry = {{"name", name},
                            {"bytes", digest.bytes},
                            {"xxh3", hash_text(digest.xxh3)},
                            {"tokens", shards[i].tokens.size()}};
    if (shards[i].row_length > 0)
      entry["rows"] = std::ssize(shards[i].tokens) / shards[i].row_length;
    if (shards[i].document_starts) entry["documents"] = shards[i].document_starts->size();
    tokens += std::ssize(shards[i].tokens);
    files.push_back(entry);
  }
  nlohmann::json manifest = {
      {"format", "jiboia-token-shards"}, {"format_version", 1}, {"layout", "stream"},
      {"vocab_size", vocab_size},        {"tokens", tokens},    {"files", files}};
  if (!shards.empty() && shards.front().row_length > 0) {
    manifest["layout"] = "rows";
    manifest["row_length"] = shards.front().row_length;
  }
  if (change) change(manifest);
  std::ofstream(folder / "manifest.json") << manifest.dump(1);
}

void write_shards(const fs::path& folder, const std::vector<ShardContents>& shards,
                  std::int64_t vocab_size, const ManifestChange& change) {
  fs::create_directories(folder);
  for (std::size_t i = 0; i < shards.size(); ++i)
    write_shard(folder / fmt::format("shard_{:05}.h5", i), shards[i]);
  write_manifest(folder, shards, vocab_size, change);
}

std::string error_of(ErrorKind kind, const std::function<void()>& function) {
  try {
    function();
  } catch (const Error& error) {
    EXPECT_STREQ(to_string(error.kind()), to_string(kind)) << error.what();
    return error.kind() == kind ? error.what() : "";
  }
  ADD_FAILURE() << "no error was thrown";
  return "";
}

std::vector<std::int64_t> some_tokens(std::int64_t count, std::int64_t vocab) {
  std::vector<std::int64_t> tokens;
  std::uint64_t state = 1;
  for (std::int64_t i = 0; i < count; ++i) {
    state = state * 6364136223846793005 + 1442695040888963407;
    tokens.push_back(static_cast<std::int64_t>((state >> 33) % static_cast<std::uint64_t>(vocab)));
  }
  return tokens;
}

}  // namespace jiboia
