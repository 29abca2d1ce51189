#include "train/metrics_log.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <fstream>

#include "core/error.h"
#include "core/log.h"
#include "data/file.h"

namespace jiboia {
namespace {

/// Whether a whole line is of a step up to `step`.
bool is_kept(const std::string& line, std::int64_t step) {
  const auto json = nlohmann::json::parse(line, nullptr, false);
  return json.is_object() && json.contains("step") && json["step"].is_number_integer() &&
         json["step"].get<std::int64_t>() <= step;
}

/// Leaves the lines of steps up to `step`.
void rewrite(const std::filesystem::path& path, std::int64_t step) {
  FileWriter kept(path);
  std::int64_t dropped = 0;
  if (std::filesystem::exists(path)) {
    require(std::filesystem::is_regular_file(path), ErrorKind::kIo, "{}: is not a file",
            path.string());
    std::ifstream lines(path);
    require(lines.is_open(), ErrorKind::kIo, "{}: cannot be read", path.string());
    for (std::string line; std::getline(lines, line);) {
      const bool torn = lines.eof();
      if (!torn && is_kept(line, step)) {
        kept.write(bytes_of(line + '\n'));
      } else {
        ++dropped;
      }
    }
    require(!lines.bad(), ErrorKind::kIo, "{}: cannot be read", path.string());
  }
  kept.commit();
  if (dropped) log::info("{}: {} lines after step {} dropped", path.string(), dropped, step);
}

}  // namespace

MetricsLog::MetricsLog(const std::filesystem::path& path, std::int64_t step) : path_(path) {
  rewrite(path, step);
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
