#include "data/token_shard.h"

#include <H5PLpublic.h>
#include <fcntl.h>
#include <hdf5.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <mutex>
#include <string_view>
#include <utility>

#include "core/error.h"

namespace jiboia {
namespace {

namespace fs = std::filesystem;

constexpr hsize_t kMaxChunkBytes = hsize_t{64} << 20;
/// No deflated tokens are smaller than this part of their size; an extent beyond it is an attack or
/// has chunks that were never written.
constexpr std::int64_t kMaxCompression = 256;
constexpr std::size_t kCacheSlots = 1009;  // a prime well above the chunks that a cache holds
constexpr hsize_t kMaxListed = 16;
constexpr std::size_t kMaxNameBytes = 64;

/// Held during every call into HDF5, whose serial library is not thread-safe.
class Hdf5Lock {
 public:
  Hdf5Lock() : lock_(mutex()) {
    H5Eset_auto2(H5E_DEFAULT, nullptr, nullptr);  // our errors carry HDF5's; it prints nothing
    H5PLset_loading_state(0);                     // a file cannot make us load a filter's library
  }

 private:
  static std::mutex& mutex() {
    static std::mutex instance;
    return instance;
  }
  std::lock_guard<std::mutex> lock_;
};

/// An HDF5 identifier that is closed when it goes out of scope.
class Handle {
 public:
  using Close = herr_t (*)(hid_t);
  Handle() = default;
  Handle(hid_t id, Close close) : id_(id), close_(close) {}
  Handle(Handle&& other) noexcept : id_(std::exchange(other.id_, -1)), close_(other.close_) {}
  Handle& operator=(Handle&& other) noexcept {
    std::swap(id_, other.id_);
    std::swap(close_, other.close_);
    return *this;
  }
  ~Handle() {
    if (id_ >= 0) close_(id_);
  }
  hid_t get() const { return id_; }
  explicit operator bool() const { return id_ >= 0; }

 private:
  hid_t id_ = -1;
  Close close_ = nullptr;
};

/// What HDF5 says of its last failure, innermost cause first.
std::string hdf5_message() {
  std::string message;
  const auto keep_first = [](unsigned, const H5E_error2_t* error, void* text) -> herr_t {
    auto& kept = *static_cast<std::string*>(text);
    if (kept.empty() && error->desc != nullptr) kept = error->desc;
    return 0;
  };
  H5Ewalk2(H5E_DEFAULT, H5E_WALK_UPWARD, keep_first, &message);
  return message.empty() ? "unknown failure" : message;
}

template <class... Args>
[[noreturn]] void refuse(const fs::path& path, fmt::format_string<Args...> format, Args&&... args) {
  fail(ErrorKind::kData, "{}: {}", path.string(), fmt::format(format, std::forward<Args>(args)...));
}

/// Fails with HDF5's reason when a call did.
void check(const fs::path& path, bool succeeded, std::string_view what) {
  if (!succeeded) refuse(path, "cannot {}: HDF5 says: {}", what, hdf5_message());
}

std::string describe_type(hid_t type) {
  const std::size_t bits = 8 * H5Tget_size(type);
  const bool big_endian = H5Tget_order(type) == H5T_ORDER_BE;
  switch (H5Tget_class(type)) {
    case H5T_INTEGER:
      return fmt::format("{}{}{}", H5Tget_sign(type) == H5T_SGN_NONE ? "uint" : "int", bits,
                         big_endian ? " big-endian" : "");
    case H5T_FLOAT: return fmt::format("float{}", bits);
    case H5T_STRING: return "string";
    case H5T_COMPOUND: return "compound";
    default: return "another type";
  }
}

/// "tokens: float32 (10, 2048)"; for links that are not followed, their kind.
std::string describe_link(hid_t file, const std::string& name, H5L_type_t type) {
  if (type != H5L_TYPE_HARD)
    return fmt::format("{}: {} link", name, type == H5L_TYPE_SOFT ? "soft" : "external");
  const Handle object(H5Oopen(file, name.c_str(), H5P_DEFAULT), H5Oclose);
  if (!object || H5Iget_type(object.get()) != H5I_DATASET)
    return fmt::format("{}: not a dataset", name);
  const Handle element(H5Dget_type(object.get()), H5Tclose);
  const Handle space(H5Dget_space(object.get()), H5Sclose);
  std::array<hsize_t, H5S_MAX_RANK> extents{};
  const int rank = H5Sget_simple_extent_dims(space.get(), extents.data(), nullptr);
  std::string shape;
  for (int i = 0; i < rank; ++i) shape += fmt::format("{}{}", i ? ", " : "", extents[i]);
  return fmt::format("{}: {} ({})", name, describe_type(element.get()), shape);
}

struct Link {
  std::string name;
  H5L_type_t type;
};

std::vector<Link> list_links(hid_t file, const fs::path& path) {
  H5G_info_t group{};
  check(path, H5Gget_info(file, &group) >= 0, "list its contents");
  std::vector<Link> links;
  for (hsize_t i = 0; i < std::min(group.nlinks, kMaxListed); ++i) {
    std::array<char, kMaxNameBytes + 1> name{};
    H5L_info_t link{};
    const bool read =
        H5Lget_name_by_idx(file, ".", H5_INDEX_NAME, H5_ITER_INC, i, name.data(), name.size(),
                           H5P_DEFAULT) >= 0 &&
        H5Lget_info_by_idx(file, ".", H5_INDEX_NAME, H5_ITER_INC, i, &link, H5P_DEFAULT) >= 0;
    check(path, read, "list its contents");
    links.push_back({name.data(), link.type});
  }
  return links;
}

/// Exactly `tokens` and maybe `document_starts`, both hard links. Says whether the latter is there.
bool check_links(hid_t file, const fs::path& path) {
  const std::vector<Link> links = list_links(file, path);
  bool tokens = false, starts = false, others = false;
  std::string listing;
  for (const Link& link : links) {
    const bool hard = link.type == H5L_TYPE_HARD;
    tokens |= hard && link.name == "tokens";
    starts |= hard && link.name == "document_starts";
    others |= !hard || (link.name != "tokens" && link.name != "document_starts");
    listing += (listing.empty() ? "" : "; ") + describe_link(file, link.name, link.type);
  }
  if (!tokens || others)
    refuse(path,
           "expected a dataset `tokens`, and nothing else but `document_starts`; there is: {}",
           listing.empty() ? "nothing" : listing);
  return starts;
}

void check_type(hid_t dataset, const std::string& name, const fs::path& path) {
  const Handle type(H5Dget_type(dataset), H5Tclose);
  check(path, static_cast<bool>(type), "read an element type");
  const std::size_t bytes = H5Tget_size(type.get());
  const H5T_order_t order = H5Tget_order(type.get());
  const bool plain = H5Tget_class(type.get()) == H5T_INTEGER &&
                     (bytes == 1 || bytes == 2 || bytes == 4 || bytes == 8) &&
                     H5Tget_precision(type.get()) == 8 * bytes && H5Tget_offset(type.get()) == 0 &&
                     (order == H5T_ORDER_LE || order == H5T_ORDER_BE);
  if (!plain)
    refuse(path, "`{}` is {}, expected integers of 1, 2, 4 or 8 bytes", name,
           describe_type(type.get()));
}

/// Only storage inside the file, in sane chunks, behind filters that check or compress. Says
/// whether the data can be smaller in the file than in memory.
bool check_storage(hid_t dataset, const std::string& name, int rank, const hsize_t* extents,
                   hsize_t element_bytes, const fs::path& path) {
  const Handle properties(H5Dget_create_plist(dataset), H5Pclose);
  check(path, static_cast<bool>(properties), "read a dataset's properties");
  const H5D_layout_t layout = H5Pget_layout(properties.get());
  if (layout != H5D_CHUNKED && layout != H5D_CONTIGUOUS && layout != H5D_COMPACT)
    refuse(path, "`{}` has a virtual or unknown layout, expected its data inside the file", name);
  if (H5Pget_external_count(properties.get()) != 0)
    refuse(path, "the data of `{}` lies in external files, expected it inside this one", name);
  if (layout == H5D_CHUNKED) {
    std::array<hsize_t, 2> chunk{};
    check(path, H5Pget_chunk(properties.get(), rank, chunk.data()) == rank, "read a chunk's size");
    hsize_t bytes = element_bytes;
    for (int i = 0; i < rank; ++i) {
      if (chunk[i] == 0 || __builtin_mul_overflow(bytes, chunk[i], &bytes) ||
          bytes > kMaxChunkBytes)
        refuse(path, "`{}` has chunks of more than {} bytes", name, kMaxChunkBytes);
    }
    if (rank == 2 && chunk[1] > extents[1])
      refuse(path, "`{}` has chunks {} wide, its rows have {} tokens", name, chunk[1], extents[1]);
  }
  bool compressed = false;
  const int filters = H5Pget_nfilters(properties.get());
  check(path, filters >= 0, "list the filters");
  for (unsigned i = 0; i < static_cast<unsigned>(filters); ++i) {
    std::size_t values = 0;
    unsigned flags = 0, configuration = 0;
    const H5Z_filter_t filter =
        H5Pget_filter2(properties.get(), i, &flags, &values, nullptr, 0, nullptr, &configuration);
    compressed |= filter == H5Z_FILTER_DEFLATE;
    if (filter != H5Z_FILTER_DEFLATE && filter != H5Z_FILTER_SHUFFLE &&
        filter != H5Z_FILTER_FLETCHER32)
      refuse(path, "`{}` uses filter {}, expected only deflate, shuffle and fletcher32", name,
             static_cast<int>(filter));
  }
  return compressed;
}

struct Extents {
  int rank = 0;
  std::array<hsize_t, 2> dims{};
};

Extents check_extents(hid_t dataset, const std::string& name, int max_rank, const fs::path& path) {
  const Handle space(H5Dget_space(dataset), H5Sclose);
  check(path, static_cast<bool>(space), "read a dataset's extents");
  Extents extents;
  extents.rank = H5Sget_simple_extent_ndims(space.get());
  if (extents.rank < 1 || extents.rank > max_rank)
    refuse(path, "`{}` has rank {}, expected {}", name, extents.rank,
           max_rank == 1 ? "1" : "1 (a stream) or 2 (rows)");
  H5Sget_simple_extent_dims(space.get(), extents.dims.data(), nullptr);
  return extents;
}

/// Checks a dataset's extents against what its file can hold, and returns its number of elements.
std::int64_t check_size(hid_t dataset, const std::string& name, const Extents& extents,
                        const fs::path& path) {
  const Handle type(H5Dget_type(dataset), H5Tclose);
  const hsize_t element_bytes = H5Tget_size(type.get());
  const bool compressed =
      check_storage(dataset, name, extents.rank, extents.dims.data(), element_bytes, path);
  std::int64_t count = 1, bytes = 0;
  bool overflow = false;
  for (int i = 0; i < extents.rank; ++i)
    overflow |= __builtin_mul_overflow(count, extents.dims[i], &count);
  overflow |= __builtin_mul_overflow(count, element_bytes, &bytes);
  const auto file_bytes = static_cast<std::int64_t>(fs::file_size(path));
  if (overflow || bytes / (compressed ? kMaxCompression : 1) > file_bytes)
    refuse(path, "`{}` claims {} x {} elements, more than a file of {} bytes can hold", name,
           extents.dims[0], extents.rank == 2 ? extents.dims[1] : 1, file_bytes);
  return count;
}

Handle open_dataset(hid_t file, const std::string& name, std::size_t cache_bytes,
                    const fs::path& path) {
  const Handle access(H5Pcreate(H5P_DATASET_ACCESS), H5Pclose);
  H5Pset_chunk_cache(access.get(), kCacheSlots, cache_bytes, H5D_CHUNK_CACHE_W0_DEFAULT);
  Handle dataset(H5Dopen2(file, name.c_str(), access.get()), H5Dclose);
  check(path, static_cast<bool>(dataset), "open `" + name + "`");
  check_type(dataset.get(), name, path);
  return dataset;
}

/// Reads a run along the first dimension as int64. HDF5 converts; larger values become INT64_MAX.
void read_run(hid_t dataset, const Extents& extents, hsize_t first, hsize_t count,
              std::int64_t* values, const fs::path& path) {
  const Handle space(H5Dget_space(dataset), H5Sclose);
  const std::array<hsize_t, 2> start{first, 0};
  const std::array<hsize_t, 2> size{count, extents.dims[1]};
  const Handle memory(H5Screate_simple(extents.rank, size.data(), nullptr), H5Sclose);
  const bool read =
      space && memory &&
      H5Sselect_hyperslab(space.get(), H5S_SELECT_SET, start.data(), nullptr, size.data(),
                          nullptr) >= 0 &&
      H5Dread(dataset, H5T_NATIVE_INT64, memory.get(), space.get(), H5P_DEFAULT, values) >= 0;
  check(path, read, "read");
}

/// Fails when it is the system that does not open a file, which HDF5 does not tell from a bad one.
void require_readable(const fs::path& path) {
  const int descriptor = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  require(descriptor >= 0 || errno == ENOENT, ErrorKind::kIo, "cannot open '{}': {}", path.string(),
          std::strerror(errno));
  if (descriptor >= 0) ::close(descriptor);
}

/// The version of the file that HDF5 has open, whatever has its name now.
ShardVersion version_of(hid_t file, const fs::path& path) {
  void* descriptor = nullptr;  // HDF5's default driver hands out its own
  check(path, H5Fget_vfd_handle(file, H5P_DEFAULT, &descriptor) >= 0, "examine it");
  struct stat status {};
  require(::fstat(*static_cast<int*>(descriptor), &status) == 0, ErrorKind::kIo,
          "cannot examine '{}': {}", path.string(), std::strerror(errno));
  return {
      .bytes = status.st_size,
      .modified_ns = std::int64_t{1'000'000'000} * status.st_mtim.tv_sec + status.st_mtim.tv_nsec};
}

}  // namespace

struct TokenShard::Handles {
  Handle file, tokens, starts;
  Extents extents;

  ~Handles() {  // also runs when the shard's constructor throws
    const Hdf5Lock lock;
    starts = Handle();
    tokens = Handle();
    file = Handle();
  }
};

TokenShard::TokenShard(fs::path path, std::size_t cache_bytes)
    : path_(std::move(path)), handles_(new Handles) {
  cache_bytes = std::min(cache_bytes, kMaxCacheBytes);
  const Hdf5Lock lock;
  Handles& h = *handles_;
  require_readable(path_);
  if (H5Fis_hdf5(path_.c_str()) <= 0) refuse(path_, "not an HDF5 file");
  const Handle access(H5Pcreate(H5P_FILE_ACCESS), H5Pclose);
  H5Pset_file_locking(access.get(), false, true);  // finished shards never change; NFS may not lock
  h.file = Handle(H5Fopen(path_.c_str(), H5F_ACC_RDONLY, access.get()), H5Fclose);
  check(path_, static_cast<bool>(h.file), "open it");
  version_ = version_of(h.file.get(), path_);

  const bool has_starts = check_links(h.file.get(), path_);
  h.tokens = open_dataset(h.file.get(), "tokens", cache_bytes, path_);
  h.extents = check_extents(h.tokens.get(), "tokens", 2, path_);
  if (h.extents.rank == 2) {
    if (h.extents.dims[1] == 0) refuse(path_, "`tokens` has rows of 0 tokens");
    row_length_ = static_cast<std::int64_t>(h.extents.dims[1]);
  }
  tokens_ = check_size(h.tokens.get(), "tokens", h.extents, path_);
  if (has_starts) {
    h.starts = open_dataset(h.file.get(), "document_starts", 0, path_);
    const Extents extents = check_extents(h.starts.get(), "document_starts", 1, path_);
    documents_ = check_size(h.starts.get(), "document_starts", extents, path_);
    if (*documents_ > tokens_)
      refuse(path_, "lists {} document starts for {} tokens", *documents_, tokens_);
  }
}

TokenShard::~TokenShard() = default;
TokenShard::TokenShard(TokenShard&&) noexcept = default;
TokenShard& TokenShard::operator=(TokenShard&&) noexcept = default;

std::optional<std::int64_t> TokenShard::attribute(const std::string& name) const {
  const Hdf5Lock lock;
  if (H5Aexists(handles_->file.get(), name.c_str()) <= 0) return std::nullopt;
  const Handle attribute(H5Aopen(handles_->file.get(), name.c_str(), H5P_DEFAULT), H5Aclose);
  const Handle type(H5Aget_type(attribute.get()), H5Tclose);
  const Handle space(H5Aget_space(attribute.get()), H5Sclose);
  if (!type || !space || H5Tget_class(type.get()) != H5T_INTEGER ||
      H5Sget_simple_extent_npoints(space.get()) != 1)
    refuse(path_, "attribute `{}` is not an integer", name);
  std::int64_t value = 0;
  check(path_, H5Aread(attribute.get(), H5T_NATIVE_INT64, &value) >= 0, "read an attribute");
  return value;
}

void TokenShard::require_version(const ShardVersion& expected) const {
  ShardVersion now;
  {
    const Hdf5Lock lock;
    now = version_of(handles_->file.get(), path_);
  }
  if (now != expected)
    refuse(path_, "changed while it was in use: it had {} bytes and has {}{}", expected.bytes,
           now.bytes, now.bytes == expected.bytes ? ", with another modification time" : "");
}

void TokenShard::read_tokens(std::int64_t first, std::span<std::int64_t> values) const {
  const auto count = static_cast<std::int64_t>(values.size());
  const std::int64_t width = std::max<std::int64_t>(row_length_, 1);
  require(first >= 0 && count <= tokens_ && first <= tokens_ - count && first % width == 0 &&
              count % width == 0,
          ErrorKind::kInternal, "{}: {} tokens from {} on were asked for, it has {} in rows of {}",
          path_.string(), count, first, tokens_, width);
  if (count == 0) return;
  require_version(version_);
  {
    const Hdf5Lock lock;
    read_run(handles_->tokens.get(), handles_->extents, static_cast<hsize_t>(first / width),
             static_cast<hsize_t>(count / width), values.data(), path_);
  }
  require_version(version_);
}

std::vector<std::int64_t> TokenShard::read_document_starts() const {
  std::vector<std::int64_t> starts(static_cast<std::size_t>(documents_.value_or(0)));
  if (starts.empty()) return starts;
  {
    const Hdf5Lock lock;
    const Extents extents{1, {starts.size(), 0}};
    read_run(handles_->starts.get(), extents, 0, starts.size(), starts.data(), path_);
  }
  std::int64_t previous = -1;
  for (std::size_t i = 0; i < starts.size(); ++i) {
    if (starts[i] <= previous || starts[i] >= tokens_)
      refuse(path_, "document_starts[{}] is {}, expected more than {} and less than {}", i,
             starts[i], previous, tokens_);
    previous = starts[i];
  }
  return starts;
}

}  // namespace jiboia
