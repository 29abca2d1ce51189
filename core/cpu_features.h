#pragma once

namespace jiboia {

/// Ends the process with a message when this CPU lacks an instruction set that the programs were
/// compiled for (JIBOIA_NATIVE on another machine). Runs by itself before main() and before all
/// other initialisers, since any of those could hold such an instruction already; calling it only
/// makes sure that it is linked.
void require_cpu_features();

namespace detail {

/// An instruction set, and whether the compiler was told that this CPU has it.
struct CpuFeature {
  const char* name;  ///< as __builtin_cpu_supports() knows it
  bool compiled;
};
/// Ended by a null name. Data only, in a file compiled like all others.
extern const CpuFeature kCpuFeatures[];

/// The name of the first feature that is compiled for and not supported; null when there is none.
const char* missing_feature(const CpuFeature* features, bool (*supports)(const char* name));

}  // namespace detail

/// Every instruction set that -march may let the compiler use, with the macro that says that it
/// did.
#define JIBOIA_CPU_FEATURES(X)              \
  X(__SSE4_2__, "sse4.2")                   \
  X(__POPCNT__, "popcnt")                   \
  X(__AVX__, "avx")                         \
  X(__AVX2__, "avx2")                       \
  X(__FMA__, "fma")                         \
  X(__BMI__, "bmi")                         \
  X(__BMI2__, "bmi2")                       \
  X(__LZCNT__, "lzcnt")                     \
  X(__F16C__, "f16c")                       \
  X(__MOVBE__, "movbe")                     \
  X(__ADX__, "adx")                         \
  X(__GFNI__, "gfni")                       \
  X(__VAES__, "vaes")                       \
  X(__VPCLMULQDQ__, "vpclmulqdq")           \
  X(__AVX512F__, "avx512f")                 \
  X(__AVX512DQ__, "avx512dq")               \
  X(__AVX512BW__, "avx512bw")               \
  X(__AVX512VL__, "avx512vl")               \
  X(__AVX512CD__, "avx512cd")               \
  X(__AVX512IFMA__, "avx512ifma")           \
  X(__AVX512VBMI__, "avx512vbmi")           \
  X(__AVX512VBMI2__, "avx512vbmi2")         \
  X(__AVX512VNNI__, "avx512vnni")           \
  X(__AVX512BITALG__, "avx512bitalg")       \
  X(__AVX512VPOPCNTDQ__, "avx512vpopcntdq") \
  X(__AVX512BF16__, "avx512bf16")

}  // namespace jiboia
