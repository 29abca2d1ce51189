#include "train/tools/program.h"

#include <fcntl.h>
#include <poll.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <cerrno>
#include <clocale>
#include <csignal>
#include <cstdio>
#include <cstring>
#include <iostream>
#include <locale>
#include <new>
#include <sstream>
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

/// Ends a program whose output nobody reads any more.
struct ReaderGone {};

/// Whether all that was printed arrived; false when its reader went away. Errors: Io.
bool flush_stdout() {
  // Not through std::cout, whose flush() would keep the reason to itself.
  const int reason = std::fflush(stdout) != 0 ? errno : 0;
  if (std::ferror(stdout) == 0) return true;
  pollfd output{.fd = STDOUT_FILENO, .events = POLLOUT, .revents = 0};
  if (::poll(&output, 1, 0) == 1 && (output.revents & (POLLERR | POLLHUP)) != 0) return false;
  fail(ErrorKind::kIo, "cannot write to standard output: {}",
       reason != 0 ? std::strerror(reason) : "part of it was lost");
}

int parse_and_run(const std::string& name, CLI::App& app, int argc, char** argv,
                  const std::function<int()>& body) {
  try {
    app.parse(argc, argv);
  } catch (const CLI::Success& wanted) {  // --help, --version
    std::ostringstream text;
    app.exit(wanted, text, text);
    write_stdout(text.str());
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

/// Files that the program opens must not get the numbers of the standard streams. Standard output
/// cannot be written to, so that what is printed is not lost in silence.
void open_closed_streams() {
  for (const int descriptor : {STDIN_FILENO, STDOUT_FILENO, STDERR_FILENO}) {
    if (::fcntl(descriptor, F_GETFD) >= 0) continue;
    const int mode = descriptor == STDOUT_FILENO ? O_RDONLY : O_RDWR;
    const int opened = ::open("/dev/null", mode);  // the lowest number that is free
    require(opened == descriptor, ErrorKind::kIo, "cannot open /dev/null as descriptor {}: {}",
            descriptor, std::strerror(errno));
  }
}

}  // namespace

void write_stdout(std::string_view text) {
  std::fwrite(text.data(), 1, text.size(), stdout);
  if (!flush_stdout()) throw ReaderGone{};
}

int run_program(const std::string& name, CLI::App& app, int argc, char** argv,
                const std::function<int()>& body) {
  std::setlocale(LC_ALL, "C");
  std::locale::global(std::locale::classic());
  std::signal(SIGPIPE, SIG_IGN);
  std::signal(SIGXFSZ, SIG_IGN);
  app.name(name);
  app.set_help_flag("-h,--help", "Print this help and exit");
  app.set_version_flag("-V,--version", version_text(name), "Print the version and exit");
  try {
    open_closed_streams();
    require_cpu_features();
    return parse_and_run(name, app, argc, argv, body);
  } catch (const ReaderGone&) {
    return 0;
  } catch (const Error& error) {
    return report(name, error.kind(), error.what());
  } catch (const std::bad_alloc&) {
    return report(name, ErrorKind::kOutOfMemory, "the system gives no more memory");
  } catch (const std::system_error& error) {  // std::filesystem's and fmt::print()'s
    if (error.code() == std::errc::broken_pipe) return 0;
    return report(name, ErrorKind::kIo, error.what());
  } catch (const std::exception& error) {
    return report(name, ErrorKind::kInternal, error.what());
  }
}

}  // namespace jiboia
