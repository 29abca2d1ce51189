#include "train/metrics_log.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <fstream>
#include <optional>
#include <string>
#include <utility>

#include "core/error.h"
#include "core/log.h"
#include "data/file.h"

namespace jiboia {
namespace {

/// The step that a whole line is of; nothing of a line that no run wrote so.
std::optional<std::int64_t> step_of(const std::string& line) {
  const auto json = nlohmann::json::parse(line, nullptr, false);
  if (!json.is_object() || !json.contains("step")) return std::nullopt;
  const auto& step = json["step"];  // what is below 0 is no unsigned number
  if (!step.is_number_unsigned() || !std::in_range<std::int64_t>(step.get<std::uint64_t>()))
    return std::nullopt;
  return step.get<std::int64_t>();
}

/// Leaves the lines of steps up to `step`.
void rewrite(const std::filesystem::path& path, std::int64_t step) {
  FileWriter kept(path);
  std::int64_t number = 0, dropped = 0, damaged = 0, first_damaged = 0;
  if (std::filesystem::exists(path)) {
    require(std::filesystem::is_regular_file(path), ErrorKind::kIo, "{}: is not a file",
            path.string());
    std::ifstream lines(path);
    require(lines.is_open(), ErrorKind::kIo, "{}: cannot be read", path.string());
    for (std::string line; std::getline(lines, line);) {
      ++number;
      const bool torn = lines.eof();  // the step in which a run was killed
      const auto found = torn ? std::nullopt : step_of(line);
      if (found && *found <= step) {
        kept.write(bytes_of(line + '\n'));
      } else if (found || torn) {
        ++dropped;
      } else if (++damaged == 1) {
        first_damaged = number;
      }
    }
    require(!lines.bad(), ErrorKind::kIo, "{}: cannot be read", path.string());
  }
  kept.commit();
  if (damaged) {
    log::warning("{}: line {} is damaged, no JSON object with a step from 0 on, and dropped{}",
                 path.string(), first_damaged,
                 damaged > 1 ? fmt::format("; so are {} behind it", damaged - 1) : "");
  }
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
