#pragma once

namespace jiboia {

/// Ends the process with a message when this CPU lacks an instruction set that the programs were
/// compiled for (JIBOIA_NATIVE on another machine). Runs by itself before main() and before all
/// other initialisers, since any of those could hold such an instruction already; calling it only
/// makes sure that it is linked.
void require_cpu_features();

namespace detail {
/// What the compiler was told this CPU has: names as __builtin_cpu_supports() knows them, ended by
/// a null. Data only, in a file compiled like all others.
extern const char* const kCompiledFeatures[];
}  // namespace detail

}  // namespace jiboia
