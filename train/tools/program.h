#pragma once
#include <functional>
#include <string>
#include <string_view>

namespace CLI {
class App;
}

namespace jiboia {

/// Runs one of the project's programs: parses the command line with `app`, whose options the caller
/// has declared, then calls `body` and returns its exit code. Adds --help (-h) and --version (-V).
/// Everything that goes wrong ends here, once, as "name: kind: message" on stderr and an exit code
/// of exit_code(ErrorKind); a bad command line also names --help. Help and version go to stdout.
///
/// Sets up the process: numbers have a decimal point in every locale; a reader that goes away
/// (`shards inspect | head`) and a limit on file sizes make writes fail and kill nothing; what the
/// caller closed of descriptors 0 to 2 is /dev/null, so that no file gets their numbers, and
/// writing to a stdout that was closed fails. Output to stdout that was lost is an error of kind
/// Io, unless its reader went away.
int run_program(const std::string& name, CLI::App& app, int argc, char** argv,
                const std::function<int()>& body);

/// Writes text to stdout at once. To be called within run_program(), which ends quietly with exit
/// code 0 when the reader has gone. Errors: Io.
void write_stdout(std::string_view text);

}  // namespace jiboia
