#include "train/metrics_log.h"

#include <gtest/gtest.h>

#include "core/error.h"
#include "data/file.h"
#include "tests/support/temporary_folder.h"

namespace jiboia {
namespace {

/// What a log that began as `before` holds once a run has gone on from step 2 with step 3.
std::string resumed(const std::string& before) {
  const TemporaryFolder folder;
  const std::filesystem::path path = folder / "metrics.jsonl";
  if (!before.empty()) write_file_atomically(path, before);
  testing::internal::CaptureStderr();
  MetricsLog metrics(path, 2);
  testing::internal::GetCapturedStderr();
  metrics.append({{"step", 3}, {"train/loss", 0.1}});
  metrics.sync();
  return read_text_file(path, 1 << 20);
}

TEST(MetricsLog, DropsWhatWillBeWrittenAgain) {
  const std::string third = "{\"step\":3,\"train/loss\":0.1}\n";
  const std::string old = "{\"step\":1, \"x\": [1e-3]}\n{\"step\":2}\n";
  EXPECT_EQ(resumed(""), third);
  EXPECT_EQ(resumed(old), old + third);
  EXPECT_EQ(resumed(old + "{\"step\":3}\n{\"step\":4}\n"), old + third);
}

TEST(MetricsLog, DropsTornAndForeignLines) {
  const std::string third = "{\"step\":3,\"train/loss\":0.1}\n", first = "{\"step\":1}\n";
  EXPECT_EQ(resumed(first + "{\"step\":2}"), first + third);  // the line's end is missing
  EXPECT_EQ(resumed(first + "{\"st"), first + third);
  EXPECT_EQ(resumed("\n[1]\n{\"step\":\"1\"}\n{}\n" + first), first + third);
}

TEST(MetricsLog, RefusesWhatIsNotAFile) {
  const TemporaryFolder folder;
  std::filesystem::create_directory(folder / "metrics.jsonl");
  EXPECT_THROW(MetricsLog(folder / "metrics.jsonl", 0), Error);
}

}  // namespace
}  // namespace jiboia
