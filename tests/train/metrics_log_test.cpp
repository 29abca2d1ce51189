#include "train/metrics_log.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "core/error.h"
#include "data/file.h"
#include "tests/support/temporary_folder.h"

namespace jiboia {
namespace {

using testing::AllOf;
using testing::HasSubstr;
using testing::Not;

/// What a log that began as `before` holds once a run has gone on from step 2 with step 3; puts
/// what was said of it into `said`.
std::string resumed(const std::string& before, std::string* said = nullptr) {
  const TemporaryFolder folder;
  const std::filesystem::path path = folder / "metrics.jsonl";
  if (!before.empty()) write_file_atomically(path, before);
  testing::internal::CaptureStderr();
  MetricsLog metrics(path, 2);
  const std::string text = testing::internal::GetCapturedStderr();
  if (said) *said = text;
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

TEST(MetricsLog, WarnsOfDamagedLines) {
  const std::string third = "{\"step\":3,\"train/loss\":0.1}\n", first = "{\"step\":1}\n";
  std::string said;
  for (const char* damaged : {"{\"st\xff", "", "[1]", "{}", "{\"step\":1.0}", "{\"step\":-5}",
                              "{\"step\":18446744073709551615}"}) {
    const std::string before = first + damaged + "\n{\"step\":2}\n{\"step\":3}\n{\"st";
    EXPECT_EQ(resumed(before, &said), first + "{\"step\":2}\n" + third) << damaged;
    EXPECT_THAT(said, AllOf(HasSubstr("warning"), HasSubstr("line 2 is damaged"),
                            Not(HasSubstr("behind")), HasSubstr("2 lines after step 2 dropped")))
        << damaged;
  }
  resumed("{}\n" + first + "{}\n{}\n", &said);
  EXPECT_THAT(said, AllOf(HasSubstr("line 1 is damaged"), HasSubstr("so are 2 behind it")));
  resumed(first + "{\"step\":3}\n{\"st", &said);  // what a kill leaves
  EXPECT_THAT(said, Not(HasSubstr("warning")));
}

TEST(MetricsLog, RefusesWhatIsNotAFile) {
  const TemporaryFolder folder;
  std::filesystem::create_directory(folder / "metrics.jsonl");
  EXPECT_THROW(MetricsLog(folder / "metrics.jsonl", 0), Error);
}

}  // namespace
}  // namespace jiboia
