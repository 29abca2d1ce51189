#include "train/tools/program.h"

#include <CLI/CLI.hpp>
#include <cerrno>
#include <clocale>
#include <csignal>
#include <cstdio>
#include <cstring>
#include <iostream>
#include <locale>
#include <new>
#include <string_view>
#include <system_error>

#include "core/cpu_features.h"
#include "core/error.h"
#include "train/tools/version.h"

namespace jiboia {
namespace {

int report(const std::string& program, ErrorKind kind, std::string_view message) {
  constexpr std::size_t kMaxShown = 4000;  // a message may repeat a command line of any length
  const std::string_view rest = message.size() > kMaxShown ? "..." : "";
  std::cerr << program << ": " << to_string(kind) << ": " << message.substr(0, kMaxShown) << rest
            << std::endl;
  return exit_code(kind);
}

/// Fails when what was printed did not arrive, unless its reader went away.
void flush_stdout() {
  std::cout.flush();
  if (std::fflush(stdout) != 0 && errno != EPIPE) {
    fail(ErrorKind::kIo, "cannot write to standard output: {}", std::strerror(errno));
  }
}

int parse_and_run(const std::string& name, CLI::App& app, int argc, char** argv,
                  const std::function<int()>& body) {
  try {
    app.parse(argc, argv);
  } catch (const CLI::Success& wanted) {  // --help, --version
    app.exit(wanted, std::cout, std::cerr);
    flush_stdout();
    return 0;
  } catch (const CLI::ParseError& error) {
    const int code = report(name, ErrorKind::kInvalidArgument, error.what());
    std::cerr << "Try '" << name << " --help' for more information." << std::endl;
    return code;
  }
  const int code = body();
  flush_stdout();
  return code;
}

}  // namespace

int run_program(const std::string& name, CLI::App& app, int argc, char** argv,
                const std::function<int()>& body) {
  require_cpu_features();
  std::setlocale(LC_ALL, "C");
  std::locale::global(std::locale::classic());
  std::signal(SIGPIPE, SIG_IGN);
  app.name(name);
  app.set_help_flag("-h,--help", "Print this help and exit");
  app.set_version_flag("-V,--version", version_text(name), "Print the version and exit");
  try {
    return parse_and_run(name, app, argc, argv, body);
  } catch (const Error& error) {
    return report(name, error.kind(), error.what());
  } catch (const std::bad_alloc&) {
    return report(name, ErrorKind::kOutOfMemory, "the system gives no more memory");
  } catch (const std::system_error& error) {  // std::filesystem's among them
    return report(name, ErrorKind::kIo, error.what());
  } catch (const std::exception& error) {
    return report(name, ErrorKind::kInternal, error.what());
  }
}

}  // namespace jiboia
