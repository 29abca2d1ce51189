#pragma once
#include <functional>
#include <string>

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
/// (`shards inspect | head`) makes writes fail and ends nothing.
int run_program(const std::string& name, CLI::App& app, int argc, char** argv,
                const std::function<int()>& body);

}  // namespace jiboia
