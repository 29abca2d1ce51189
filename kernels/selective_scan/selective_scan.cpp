#include "kernels/selective_scan/selective_scan.h"

#include "core/check.h"
#include "kernels/selective_scan/selective_scan_tiles.h"

namespace jiboia {

ScanKernels SelectiveScan::kernels_for(const Exec& exec) {
  const auto has_shared_memory = [](const auto& backend) {
    if constexpr (requires { backend.gpu(); }) {
      return backend.gpu().shared_bytes_per_block >= scan_tiles::kSharedBytes;
    } else {
      return true;
    }
  };
  return std::visit(has_shared_memory, exec) ? ScanKernels::kAny : ScanKernels::kGeneral;
}

SelectiveScan::Out<Spec> SelectiveScan::infer(const In<Spec>& in, const Attrs& attrs) {
  expect_float(kName, "u", in.u, 3, "(B, L, D)");
  expect_float(kName, "a_log", in.a_log, 2, "(D, N)");
  const Dtype dtype = in.u.dtype, full = accumulator_of(dtype);
  const std::int64_t B = in.u.shape[0], L = in.u.shape[1], D = in.u.shape[2];
  const std::int64_t N = in.a_log.shape[1];
  require(L > 0, ErrorKind::kInvalidArgument, "{}: u is {}, expected (B, L, D) with L > 0", kName,
          in.u.to_string());
  expect(kName, "a_log", in.a_log, full, {D, N}, "(D, N)");
  expect_rows(kName, "dt", in.dt, dtype, {B, L, D}, "(B, L, D)");
  expect_rows(kName, "z", in.z, dtype, {B, L, D}, "(B, L, D)");
  expect_rows(kName, "b", in.b, dtype, {B, L, N}, "(B, L, N), N from a_log,");
  expect_rows(kName, "c", in.c, dtype, {B, L, N}, "(B, L, N), N from a_log,");
  expect(kName, "d_skip", in.d_skip, full, {D}, "(D)");
  expect(kName, "dt_bias", in.dt_bias, full, {D}, "(D)");
  if (in.document_start) {
    expect(kName, "document_start", in.document_start, Dtype::kI32, {B, L}, "(B, L)");
  }
  const Spec state(full, {B, N, D});
  if (in.initial_state) {
    expect(kName, "initial_state", in.initial_state, full, state.shape, "(B, N, D)");
  }
  return {.y = in.u.packed(),
          .states = scan_tiles::uses_tiles(in, attrs) ? scan_tiles::states_spec(in.u)
                                                      : Spec(full, {B, ceil_div(L, kChunk), N, D}),
          .final_state = attrs.final_state == FinalState::kReturn ? state : Spec()};
}

}  // namespace jiboia
