#include "train/metrics_log.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "core/error.h"
#include "core/log.h"
#include "data/file.h"

namespace jiboia {
namespace {

/// The lines of steps up to `step`.
std::string kept_lines(const std::filesystem::path& path, std::int64_t step) {
  constexpr std::int64_t kMaxBytes = std::int64_t{1} << 36;
  std::string kept;
  if (!std::filesystem::exists(path)) return kept;
  const std::string text = read_text_file(path, kMaxBytes);
  std::int64_t dropped = 0;
  for (std::size_t begin = 0; begin < text.size();) {
    const std::size_t end = text.find('\n', begin);
    const bool torn = end == std::string::npos;
    const std::string line = text.substr(begin, torn ? end : end - begin);
    const auto json = nlohmann::json::parse(line, nullptr, false);
    const bool valid =
        json.is_object() && json.contains("step") && json["step"].is_number_integer();
    if (!torn && valid && json["step"].get<std::int64_t>() <= step) {
      kept += line + '\n';
    } else {
      ++dropped;
    }
    begin = torn ? text.size() : end + 1;
  }
  if (dropped) log::info("{}: {} lines after step {} dropped", path.string(), dropped, step);
  return kept;
}

}  // namespace

MetricsLog::MetricsLog(const std::filesystem::path& path, std::int64_t step) : path_(path) {
  write_file_atomically(path, kept_lines(path, step));
  descriptor_ = ::open(path.c_str(), O_WRONLY | O_APPEND | O_CLOEXEC);
  require(descriptor_ >= 0, ErrorKind::kIo, "{}: {}", path.string(), std::strerror(errno));
}

MetricsLog::~MetricsLog() { ::close(descriptor_); }

void MetricsLog::append(const nlohmann::ordered_json& line) {
  const std::string text = line.dump() + '\n';
  for (std::size_t done = 0; done < text.size();) {
    const ssize_t written = ::write(descriptor_, text.data() + done, text.size() - done);
    if (written < 0 && errno == EINTR) continue;
    require(written > 0, ErrorKind::kIo, "{}: a line of {} bytes: {}", path_.string(), text.size(),
            std::strerror(errno));
    done += static_cast<std::size_t>(written);
  }
}

void MetricsLog::sync() {
  require(::fsync(descriptor_) == 0, ErrorKind::kIo, "{}: fsync: {}", path_.string(),
          std::strerror(errno));
}

}  // namespace jiboia
