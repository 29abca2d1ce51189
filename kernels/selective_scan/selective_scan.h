#pragma once
#include "core/op.h"

namespace jiboia {

/// Whether a scan hands back the state behind its last step.
enum class FinalState : std::uint8_t { kDiscard, kReturn };

/// Which kernels a GPU may take: the fast ones where they suit, or those that suit all.
enum class ScanKernels : std::uint8_t { kAny, kGeneral };

/// The selective state space recurrence of Mamba-1 with its step size, skip and gate:
///   delta = softplus(dt + dt_bias),  decay_t = exp(-exp(a_log) * delta_t),
///   h_t = decay_t * h_(t-1) + delta_t * b_t * u_t,
///   y_t = (sum over states of c_t * h_t + d_skip * u_t) * silu(z_t).
/// Shapes: u, dt, z, y (B, L, D); b, c (B, L, N); a_log (D, N); d_skip, dt_bias (D). The rows of u,
/// dt, z, b, c may be slices of columns. u, dt, b, c, z and y have one dtype T, all else
/// accumulator_of(T).
/// document_start (B, L), i32, optional: the index within the row of the first token of the
/// document that the token belongs to. Where it is the token's own index, the decay is zero.
/// initial_state (B, N, D), optional: the state before the first step, 0 otherwise. It is a
/// constant: no gradient reaches it.
/// final_state (B, N, D): the state behind the last step, absent unless attrs ask for it.
/// Saves states (B, ceil(L / kChunk), N, D): the state before each chunk. Backward computes the
/// others again, chunk by chunk.
/// The GPU has fast kernels for bf16 with N = 16 and D a multiple of 32, without initial_state and
/// final_state, if the rows of u, dt and z are multiples of 8 elements apart and attrs allow them
/// (uses_tiles() in selective_scan_tiles.h). With these,
/// - the states saved are rounded to bf16, and are those before every 4th step, in an order of
///   their own;
/// - backward takes y before the gate to be y / silu(z), and so both passes read a |z| < 2^-60 as
///   2^-60, which changes y by less than 1e-18 of what it is before the gate;
/// - slices of columns have to keep u, dt and z aligned to 16 bytes, their gradients to 8.
///
/// Gradients, with g the gradient of y, dy = g * silu(z) and A = -exp(a_log):
///   gamma_t = decay_(t+1) * gamma_(t+1) + dy_t * c_t     (the gradient of h_t)
///   grad_b_t = sum over channels of gamma_t * delta_t * u_t,
///   grad_c_t = sum over channels of dy_t * h_t,
///   grad_u_t = d_skip * dy_t + delta_t * sum over states of gamma_t * b_t,
///   grad_delta_t = sum over states of gamma_t * (b_t * u_t + A * decay_t * h_(t-1)),
///   grad_dt_t = grad_delta_t * sigmoid(dt_t + dt_bias),  grad_dt_bias = its sum over B and L,
///   grad_a_log = A * sum over B and L of gamma_t * delta_t * decay_t * h_(t-1),
///   grad_d_skip = sum over B and L of dy_t * u_t,
///   grad_z_t = g_t * (y_t before the gate) * silu'(z_t).
/// Errors: infer() throws InvalidArgument when shapes or dtypes disagree or L, D or N is 0; the
/// fast kernels throw Unsupported when slices are not aligned.
/// Source: Gu & Dao 2023, arXiv:2312.00752, algorithm 2 (b discretised by Euler's rule).
struct SelectiveScan {
  static constexpr const char* kName = "selective_scan";
  static constexpr const char* kInputs[] = {
      "u", "dt", "a_log", "b", "c", "d_skip", "z", "dt_bias", "document_start", "initial_state"};
  static constexpr const char* kOutputs[] = {"y", "states", "final_state"};
  template <class T = Tensor>
  struct In {
    T u, dt, a_log, b, c, d_skip, z, dt_bias, document_start, initial_state;
  };
  template <class T = Tensor>
  struct Out {
    T y, states, final_state;
  };
  struct Attrs {
    FinalState final_state = FinalState::kDiscard;
    ScanKernels kernels = ScanKernels::kAny;  ///< at most kernels_for() the exec
  };
  static constexpr In<InputKind> kInputKinds{.u = InputKind::kActivation,
                                             .dt = InputKind::kActivation,
                                             .a_log = InputKind::kFull,
                                             .b = InputKind::kActivation,
                                             .c = InputKind::kActivation,
                                             .d_skip = InputKind::kFull,
                                             .z = InputKind::kActivation,
                                             .dt_bias = InputKind::kFull,
                                             .document_start = InputKind::kIndex,
                                             .initial_state = InputKind::kFull};
  static constexpr In<bool> kBackwardReadsInputs{.u = true,
                                                 .dt = true,
                                                 .a_log = true,
                                                 .b = true,
                                                 .c = true,
                                                 .d_skip = true,
                                                 .z = true,
                                                 .dt_bias = true,
                                                 .document_start = true,
                                                 .initial_state = false};
  static constexpr Out<bool> kBackwardReadsOutputs{.y = true, .states = true, .final_state = false};

  /// Steps between two saved states.
  static constexpr std::int64_t kChunk = 16;

  /// kGeneral on a GPU whose blocks have too little shared memory for the fast kernels, which
  /// take what Hopper and later data-centre GPUs have.
  static ScanKernels kernels_for(const Exec& exec);

  static Out<Spec> infer(const In<Spec>& in, const Attrs& attrs);
  static void forward(CpuExec& cpu, const ForwardArgs<SelectiveScan>& args);
  static void forward(CudaExec& gpu, const ForwardArgs<SelectiveScan>& args);
  static void backward(CpuExec& cpu, const BackwardArgs<SelectiveScan>& args);
  static void backward(CudaExec& gpu, const BackwardArgs<SelectiveScan>& args);
  static std::int64_t scratch_bytes(const CpuExec&, Pass pass, const In<Spec>& in, const Attrs&);
  static std::int64_t scratch_bytes(const CudaExec&, Pass pass, const In<Spec>& in, const Attrs&);
};

}  // namespace jiboia
