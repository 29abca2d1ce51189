#include "train/tools/program.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <clocale>
#include <cstdio>
#include <filesystem>
#include <memory>
#include <new>
#include <vector>

#include "core/error.h"
#include "train/tools/version.h"

namespace jiboia {
namespace {

using testing::AllOf;
using testing::EndsWith;
using testing::HasSubstr;
using testing::StartsWith;

struct Result {
  int code = -1;
  std::string out, err;
};

/// Runs a program "snake" with one required option --egg and one flag.
Result run(std::vector<std::string> arguments, const std::function<int()>& body) {
  CLI::App app("Hatches an egg");
  int egg = 0;
  bool warm = false;
  app.add_option("-e,--egg", egg, "Which egg")->required();
  app.add_flag("--warm", warm, "Whether it is warm");
  arguments.insert(arguments.begin(), "/usr/bin/anything");
  std::vector<char*> argv;
  for (std::string& argument : arguments) argv.push_back(argument.data());
  argv.push_back(nullptr);
  testing::internal::CaptureStdout();
  testing::internal::CaptureStderr();
  Result result;
  result.code = run_program("snake", app, static_cast<int>(arguments.size()), argv.data(), body);
  result.out = testing::internal::GetCapturedStdout();
  result.err = testing::internal::GetCapturedStderr();
  return result;
}

int never() {
  ADD_FAILURE() << "the body ran";
  return 0;
}

TEST(Program, ReturnsTheCodeOfItsBody) {
  for (const auto& arguments : {std::vector<std::string>{"--egg", "1"}, {"--egg=1", "--warm"}}) {
    EXPECT_EQ(run(arguments, [] { return 0; }).code, 0);
    EXPECT_EQ(run(arguments, [] { return 143; }).code, 143);
  }
}

TEST(Program, PrintsHelpAndVersionToStdout) {
  for (const char* flag : {"--help", "-h"}) {
    const Result help = run({flag}, never);
    EXPECT_EQ(help.code, 0);
    EXPECT_THAT(help.out, AllOf(HasSubstr("Hatches an egg"), HasSubstr("snake [OPTIONS]"),
                                HasSubstr("--egg"), HasSubstr("--version")));
    EXPECT_EQ(help.err, "");
  }
  for (const char* flag : {"--version", "-V"}) {
    const Result shown = run({flag}, never);
    EXPECT_EQ(shown.code, 0);
    EXPECT_EQ(shown.out, version_text("snake") + "\n");
    EXPECT_EQ(shown.err, "");
  }
  EXPECT_THAT(version_text("snake"),
              testing::MatchesRegex("snake \\(Jiboia\\) [0-9.]+\ncommit ([0-9a-f]{12}(-modified)?|"
                                    "unknown)\ncompiler .+ [0-9.]+.*\nCUDA (yes|no)"));
}

TEST(Program, RefusesABadCommandLine) {
  const std::pair<std::vector<std::string>, const char*> cases[] = {
      {{}, "--egg is required"},
      {{"--egg"}, "--egg"},
      {{"--egg", "x"}, "--egg"},
      {{"--egg=1", "--eg=2"}, "--eg=2"},
      {{"--egg=1", "more"}, "more"},
      {{"--egg=1", std::string(100'000, 'x')}, "xxx"},
      {{"--egg=1", "--" + std::string(100'000, 'x')}, "xxx"},
  };
  for (const auto& [arguments, message] : cases) {
    const Result result = run(arguments, never);
    EXPECT_EQ(result.code, 2);
    EXPECT_EQ(result.out, "");
    EXPECT_THAT(result.err, AllOf(StartsWith("snake: invalid argument: "), HasSubstr(message),
                                  EndsWith("\nTry 'snake --help' for more information.\n")));
    EXPECT_LT(result.err.size(), 5000U);
  }
}

TEST(Program, TurnsErrorsIntoOneLineAndACode) {
  const auto thrown = [](auto error) { return run({"--egg=1"}, [&]() -> int { throw error; }); };
  EXPECT_EQ(thrown(Error(ErrorKind::kData, "bad egg")).err, "snake: data: bad egg\n");
  EXPECT_EQ(thrown(Error(ErrorKind::kData, "bad egg")).code, 3);
  EXPECT_EQ(thrown(Error(ErrorKind::kConfig, "")).code, 2);
  EXPECT_EQ(thrown(Error(ErrorKind::kNumerics, "")).code, 5);
  EXPECT_THAT(thrown(std::bad_alloc()).err, StartsWith("snake: out of memory: "));
  EXPECT_EQ(thrown(std::bad_alloc()).code, 1);
  const std::filesystem::filesystem_error disk("no", "egg",
                                               std::make_error_code(std::errc::io_error));
  EXPECT_THAT(thrown(disk).err, AllOf(StartsWith("snake: io: "), HasSubstr("egg")));
  EXPECT_EQ(thrown(disk).code, 7);
  EXPECT_EQ(thrown(std::logic_error("odd")).err, "snake: internal: odd\n");
}

TEST(Program, KeepsTheDecimalPoint) {
  ASSERT_NE(std::setlocale(LC_ALL, "C.UTF-8"), nullptr);
  run({"--egg=1"}, [] {
    EXPECT_STREQ(std::setlocale(LC_ALL, nullptr), "C");
    return 0;
  });
}

/// Runs `body` with stdout sent to `descriptor`; the code of the program.
int run_with_stdout(int descriptor, const std::function<int()>& body) {
  std::fflush(stdout);
  const int saved = dup(STDOUT_FILENO);
  dup2(descriptor, STDOUT_FILENO);
  CLI::App app;
  std::string name = "snake";
  char* argv[] = {name.data(), nullptr};
  const int code = run_program("snake", app, 1, argv, body);
  dup2(saved, STDOUT_FILENO);
  close(saved);
  std::clearerr(stdout);
  return code;
}

TEST(Program, SurvivesAReaderThatGoesAway) {
  int ends[2];
  ASSERT_EQ(pipe(ends), 0);
  close(ends[0]);
  EXPECT_EQ(run_with_stdout(ends[1], [] { return std::puts("scales") < 0 ? 9 : 0; }), 0);
  close(ends[1]);
}

TEST(Program, SaysWhenItsOutputIsLost) {
  const std::unique_ptr<std::FILE, int (*)(std::FILE*)> full(std::fopen("/dev/full", "w"),
                                                             &std::fclose);
  ASSERT_NE(full, nullptr);
  testing::internal::CaptureStderr();
  EXPECT_EQ(run_with_stdout(fileno(full.get()), [] { return std::puts("scales") < 0 ? 9 : 0; }), 7);
  EXPECT_THAT(testing::internal::GetCapturedStderr(),
              StartsWith("snake: io: cannot write to standard output: No space left"));
}

TEST(Program, SaysWhenItHasNoOutput) {
  const auto print = [] { return std::puts("scales") < 0 ? 9 : 0; };
  for (const auto& [body, code] :
       {std::pair<std::function<int()>, int>(print, 7), {[] { return 0; }, 0}}) {
    std::fflush(stdout);
    const int saved = dup(STDOUT_FILENO);
    close(STDOUT_FILENO);
    CLI::App app;
    std::string name = "snake";
    char* argv[] = {name.data(), nullptr};
    EXPECT_EQ(run_program("snake", app, 1, argv, body), code);
    dup2(saved, STDOUT_FILENO);
    close(saved);
    std::clearerr(stdout);
  }
}

TEST(Program, OpensNoFileAsAStandardStream) {
  std::fflush(stdout);
  std::vector<int> saved;
  for (const int descriptor : {0, 1, 2}) saved.push_back(dup(descriptor));
  for (const int descriptor : {0, 1, 2}) close(descriptor);
  CLI::App app;
  std::string name = "snake";
  char* argv[] = {name.data(), nullptr};
  const int opened = run_program("snake", app, 1, argv, [] {
    const int descriptor = open("/dev/zero", O_RDONLY);
    close(descriptor);
    return descriptor;
  });
  for (const int descriptor : {0, 1, 2}) {
    dup2(saved[static_cast<std::size_t>(descriptor)], descriptor);
    close(saved[static_cast<std::size_t>(descriptor)]);
  }
  EXPECT_GT(opened, 2);
}

}  // namespace
}  // namespace jiboia
