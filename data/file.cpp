#include "data/file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#define XXH_STATIC_LINKING_ONLY  // the size of its state
#include <xxhash.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>
#include <vector>

#include "core/error.h"

namespace jiboia {
namespace {

namespace fs = std::filesystem;

/// Closes a descriptor when it goes out of scope.
class Descriptor {
 public:
  explicit Descriptor(int number) : number_(number) {}
  ~Descriptor() {
    if (number_ >= 0) ::close(number_);
  }
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  int get() const { return number_; }

 private:
  int number_;
};

std::string reason(int error_number) { return std::strerror(error_number); }

const char* kind_of_file(mode_t mode) {
  if (S_ISDIR(mode)) return "a directory";
  if (S_ISFIFO(mode)) return "a FIFO";
  if (S_ISSOCK(mode)) return "a socket";
  return "a device";
}

/// Opens a regular file and stores its size. O_NONBLOCK keeps open() from waiting for a FIFO's
/// writer; it has no effect on regular files.
int open_regular(const fs::path& path, std::int64_t& bytes) {
  const int descriptor = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (descriptor < 0) fail(ErrorKind::kIo, "cannot open '{}': {}", path.string(), reason(errno));
  struct stat status {};
  const int failed = ::fstat(descriptor, &status) != 0 ? errno : 0;
  if (failed != 0 || !S_ISREG(status.st_mode)) {
    ::close(descriptor);
    require(failed == 0, ErrorKind::kIo, "cannot examine '{}': {}", path.string(), reason(failed));
    fail(ErrorKind::kIo, "'{}' is {}, not a regular file", path.string(),
         kind_of_file(status.st_mode));
  }
  bytes = status.st_size;
  return descriptor;
}

/// Reads up to `buffer.size()` bytes; fewer only at the end of the file.
std::size_t read_fully(const Descriptor& file, std::span<std::byte> buffer, const fs::path& path) {
  std::size_t done = 0;
  while (done < buffer.size()) {
    const ssize_t got = ::read(file.get(), buffer.data() + done, buffer.size() - done);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) fail(ErrorKind::kIo, "cannot read '{}': {}", path.string(), reason(errno));
    if (got == 0) break;
    done += static_cast<std::size_t>(got);
  }
  return done;
}

fs::path folder_of(const fs::path& path) {
  return path.has_parent_path() ? path.parent_path() : fs::path(".");
}

/// The reason of a failed write, with the free bytes when they are what is missing.
std::string write_reason(const fs::path& path, int error_number) {
  if (error_number != ENOSPC && error_number != EFBIG && error_number != EDQUOT)
    return reason(error_number);
  std::error_code ignored;
  return fmt::format("{}; {} bytes are free there", reason(error_number),
                     fs::space(folder_of(path), ignored).available);
}

}  // namespace

struct Hasher::State {
  XXH3_state_t xxh3;
};

Hasher::Hasher() : state_(std::make_unique<State>()) { XXH3_64bits_reset(&state_->xxh3); }
Hasher::~Hasher() = default;
Hasher::Hasher(Hasher&&) noexcept = default;
Hasher& Hasher::operator=(Hasher&&) noexcept = default;

void Hasher::update(std::span<const std::byte> bytes) {
  XXH3_64bits_update(&state_->xxh3, bytes.data(), bytes.size());
}

std::uint64_t Hasher::digest() const { return XXH3_64bits_digest(&state_->xxh3); }

std::string hash_text(std::uint64_t hash) { return fmt::format("{:016x}", hash); }

FileDigest digest_file(const fs::path& path) {
  std::int64_t expected = 0;
  const Descriptor file(open_regular(path, expected));
  std::vector<std::byte> buffer(std::size_t{1} << 20);
  Hasher hasher;
  FileDigest digest;
  while (const std::size_t got = read_fully(file, buffer, path)) {
    hasher.update(std::span(buffer).first(got));
    digest.bytes += static_cast<std::int64_t>(got);
  }
  digest.xxh3 = hasher.digest();
  return digest;
}

std::string read_text_file(const fs::path& path, std::int64_t max_bytes) {
  std::int64_t bytes = 0;
  const Descriptor file(open_regular(path, bytes));
  require(bytes <= max_bytes, ErrorKind::kIo, "'{}' has {} bytes, at most {} are accepted",
          path.string(), bytes, max_bytes);
  std::string text(static_cast<std::size_t>(bytes), '\0');
  text.resize(read_fully(file, std::as_writable_bytes(std::span(text.data(), text.size())), path));
  return text;
}

MappedFile::MappedFile(fs::path path) : path_(std::move(path)) {
  std::int64_t bytes = 0;
  const Descriptor file(open_regular(path_, bytes));
  if (bytes == 0) return;  // mmap refuses empty ranges
  const auto size = static_cast<std::size_t>(bytes);
  void* address = ::mmap(nullptr, size, PROT_READ, MAP_SHARED, file.get(), 0);
  if (address == MAP_FAILED)
    fail(ErrorKind::kIo, "cannot map the {} bytes of '{}': {}", bytes, path_.string(),
         reason(errno));
  bytes_ = {static_cast<const std::byte*>(address), size};
}

MappedFile::~MappedFile() {
  if (!bytes_.empty()) ::munmap(const_cast<std::byte*>(bytes_.data()), bytes_.size());
}

MappedFile::MappedFile(MappedFile&& other) noexcept
    : path_(std::move(other.path_)), bytes_(std::exchange(other.bytes_, {})) {}

MappedFile& MappedFile::operator=(MappedFile&& other) noexcept {
  std::swap(path_, other.path_);
  std::swap(bytes_, other.bytes_);
  return *this;
}

FileWriter::FileWriter(fs::path path) : path_(std::move(path)), temporary_(path_) {
  temporary_ += ".tmp";
  descriptor_ =
      ::open(temporary_.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_NOFOLLOW | O_CLOEXEC, 0666);
  if (descriptor_ < 0)
    fail(ErrorKind::kIo, "cannot create '{}': {}", temporary_.string(), reason(errno));
}

FileWriter::~FileWriter() {
  if (descriptor_ < 0) return;
  ::close(descriptor_);
  ::unlink(temporary_.c_str());
}

void FileWriter::write(std::span<const std::byte> bytes) {
  hasher_.update(bytes);
  while (!bytes.empty()) {
    const ssize_t written = ::write(descriptor_, bytes.data(), bytes.size());
    if (written < 0 && errno == EINTR) continue;
    if (written < 0)
      fail(ErrorKind::kIo, "cannot write {} bytes at byte {} of '{}': {}", bytes.size(), bytes_,
           temporary_.string(), write_reason(temporary_, errno));
    bytes_ += written;
    bytes = bytes.subspan(static_cast<std::size_t>(written));
  }
}

FileDigest FileWriter::commit() {
  require(descriptor_ >= 0, ErrorKind::kInternal, "'{}' was committed twice", path_.string());
  if (::fsync(descriptor_) != 0)
    fail(ErrorKind::kIo, "cannot sync the {} bytes of '{}': {}", bytes_, temporary_.string(),
         write_reason(temporary_, errno));
  rename_path(temporary_, path_);
  // Since fsync succeeded, nothing that close() could report concerns the data.
  ::close(std::exchange(descriptor_, -1));
  fsync_directory(folder_of(path_));
  return {bytes_, hasher_.digest()};
}

FileDigest write_file_atomically(const fs::path& path, std::span<const std::byte> bytes) {
  FileWriter writer(path);
  writer.write(bytes);
  return writer.commit();
}

FileDigest write_file_atomically(const fs::path& path, std::string_view text) {
  return write_file_atomically(path, bytes_of(text));
}

void fsync_directory(const fs::path& folder) {
  const Descriptor directory(::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (directory.get() < 0)
    fail(ErrorKind::kIo, "cannot open folder '{}': {}", folder.string(), reason(errno));
  // EINVAL: this file system (some network ones) does not sync folders.
  if (::fsync(directory.get()) != 0 && errno != EINVAL)
    fail(ErrorKind::kIo, "cannot sync folder '{}': {}", folder.string(), reason(errno));
}

void rename_path(const fs::path& from, const fs::path& to) {
  if (::rename(from.c_str(), to.c_str()) != 0)
    fail(ErrorKind::kIo, "cannot rename '{}' to '{}': {}", from.string(), to.string(),
         reason(errno));
}

bool remove_file(const fs::path& path) {
  if (::unlink(path.c_str()) == 0) return true;
  if (errno != ENOENT) fail(ErrorKind::kIo, "cannot remove '{}': {}", path.string(), reason(errno));
  return false;
}

}  // namespace jiboia
