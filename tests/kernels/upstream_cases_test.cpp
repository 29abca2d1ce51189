#include <tuple>
#include <vector>

#include "kernels/causal_conv1d/causal_conv1d.h"
#include "kernels/linear/linear.h"
#include "kernels/selective_scan/selective_scan.h"
#include "tests/support/op_run.h"

// The cases that mamba_ssm and causal-conv1d test their own kernels with, and their tolerances:
// tests/ops/test_selective_scan.py, tests/ops/triton/test_selective_state_update.py and
// tests/test_causal_conv1d.py. Left out is what this project does not have (no gate, no SiLU, f16,
// complex and constant B and C, several groups). The reference is the CPU's f64 on the same
// values, where theirs is PyTorch's f32.
namespace jiboia::test {
namespace {

using Conv = CausalConv1d;
using Scan = SelectiveScan;

/// An element passes when its error is within absolute + relative * |wanted|: PyTorch's allclose.
struct Close {
  double relative, absolute;
  Close times(double relatives, double absolutes) const {
    return {relative * relatives, absolute * absolutes};
  }
  Close or_more(const Close& other) const {
    return {std::max(relative, other.relative), std::max(absolute, other.absolute)};
  }
};
void expect_close(const std::string& what, const TestTensor& got, const TestTensor& want,
                  const Close& close) {
  double worst = 0;
  for (std::int64_t i = 0; i < want.size(); ++i) {
    const double limit = close.absolute + close.relative * std::abs(want.get(i));
    const double used = std::abs(got.get(i) - want.get(i)) / limit;
    worst = used <= worst ? worst : used;  // a NaN stays
    if (std::isnan(used)) break;
  }
  EXPECT_LE(worst, 1) << what;
}

/// Pseudo-random numbers, one sequence for a test case.
class Draw {
 public:
  void normal(TestTensor& tensor) {
    // A prime number of them, over and over: large tensors would take long.
    static const std::vector<double> numbers = [] {
      const Philox random(1, RandomPurpose::kTest);
      std::vector<double> result(65521);
      for (std::size_t i = 0; i < result.size(); ++i) result[i] = random.normal(i);
      return result;
    }();
    for (std::int64_t i = 0; i < tensor.size(); ++i) {
      tensor.set(i, numbers[next_++ % numbers.size()]);
    }
  }
  /// The logarithm of numbers that are uniform in [low, high).
  void log_uniform(TestTensor& tensor, double low, double high) {
    for (std::int64_t i = 0; i < tensor.size(); ++i) {
      tensor.set(i, std::log(low + (high - low) * random_.uniform(next_++)));
    }
  }
  TestTensor normal_like(const TestTensor& like) {
    TestTensor result(like.spec());
    normal(result);
    return result;
  }

 private:
  Philox random_{0, RandomPurpose::kTest};
  std::uint64_t next_ = 0;
};

/// The lengths to run: on the emulator only those up to `most`.
std::vector<std::int64_t> lengths(std::vector<std::int64_t> all, std::int64_t most) {
  if (gpu_is_emulated() || only_small_shapes()) {
    std::erase_if(all, [most](std::int64_t length) { return length > most; });
  }
  return all;
}
bool is_slow() { return gpu_is_emulated() || only_small_shapes(); }

OpCheck<Scan> scan_of(std::int64_t B, std::int64_t L, std::int64_t D, std::int64_t N) {
  return {.inputs = {.u = {.shape = {B, L, D}},
                     .dt = {.shape = {B, L, D}, .low = 0, .high = 0.5},
                     .a_log = {.shape = {D, N}},
                     .b = {.shape = {B, L, N}},
                     .c = {.shape = {B, L, N}},
                     .d_skip = {.shape = {D}},
                     .z = {.shape = {B, L, D}},
                     .dt_bias = {.shape = {D}, .low = 0, .high = 0.5}},
          .attrs = {.final_state = FinalState::kReturn},
          .saved_outputs = {"states"}};
}

/// The gradient of A = -exp(a_log), which is what mamba_ssm looks at.
TestTensor gradient_of_a(const OpRun<Scan>& run) {
  TestTensor result(Spec(Dtype::kF64, run.in.a_log.spec().shape));
  for (std::int64_t i = 0; i < result.size(); ++i) {
    result.set(i, -run.grad_in.a_log.get(i) / std::exp(run.in.a_log.get(i)));
  }
  return result;
}

TEST(UpstreamCasesCuda, SelectiveScan) {
  JIBOIA_SKIP_WITHOUT_GPU();
  for (Dtype dtype : {Dtype::kF32, Dtype::kBf16}) {
    const Close close = dtype == Dtype::kF32 ? Close{6e-4, 2e-3} : Close{3e-2, 5e-2};
    const Close weights = Close{1e-3, 1e-3}.or_more(close);
    for (std::int64_t L :
         lengths({8, 16, 32, 64, 128, 256, 372, 512, 784, 1024, 1134, 2048, 4096}, 1134)) {
      SCOPED_TRACE(fmt::format("{}, L {}", to_string(dtype), L));
      OpRun<Scan> run(scan_of(2, L, 4, 8), dtype);
      Draw draw;
      for (TestTensor* input : {&run.in.b, &run.in.c, &run.in.d_skip, &run.in.z, &run.in.u}) {
        draw.normal(*input);
      }
      draw.log_uniform(run.in.a_log, 0, 0.5);
      run.forward_cuda();
      run.grad_out.y = draw.normal_like(run.out.y);
      run.backward_cuda();
      OpRun<Scan> exact = run.in_f64();
      exact.forward();
      exact.backward();

      const auto &got = run.grad_in, &want = exact.grad_in;
      expect_close("y", run.out.y, exact.out.y, close);
      expect_close("final_state", run.out.final_state, exact.out.final_state, close);
      expect_close("grad_u", got.u, want.u, close.times(2, 2));
      expect_close("grad_dt", got.dt, want.dt, close.times(5, 10));
      expect_close("grad_a", gradient_of_a(run), gradient_of_a(exact), weights.times(1, 5));
      expect_close("grad_b", got.b, want.b, close);
      expect_close("grad_c", got.c, want.c, close);
      expect_close("grad_d_skip", got.d_skip, want.d_skip, weights);
      expect_close("grad_z", got.z, want.z, weights);
      expect_close("grad_dt_bias", got.dt_bias, want.dt_bias, weights);
    }
  }
}

TEST(UpstreamCasesCuda, SelectiveStateUpdate) {
  JIBOIA_SKIP_WITHOUT_GPU();
  for (Dtype dtype : {Dtype::kF32, Dtype::kBf16}) {
    const Close close = dtype == Dtype::kF32 ? Close{3e-4, 1e-3} : Close{1e-2, 5e-2};
    for (std::int64_t D : {2048, 2064, 4096}) {
      for (std::int64_t N : {16, 32, 64}) {
        if (is_slow() && (D != 2064 || N == 64)) continue;
        SCOPED_TRACE(fmt::format("{}, D {}, N {}", to_string(dtype), D, N));
        OpCheck<Scan> check = scan_of(2, 1, D, N);
        check.inputs.dt_bias = {.shape = {D}, .low = -4, .high = -3};
        check.inputs.initial_state = {.shape = {2, N, D}};
        OpRun<Scan> run(check, dtype);
        Draw draw;
        for (TestTensor* input : {&run.in.u, &run.in.dt, &run.in.b, &run.in.c, &run.in.d_skip,
                                  &run.in.z, &run.in.initial_state}) {
          draw.normal(*input);
        }
        draw.log_uniform(run.in.a_log, 1, 2);
        run.forward_cuda();
        OpRun<Scan> exact = run.in_f64();
        exact.forward();
        expect_close("y", run.out.y, exact.out.y, close);
        expect_close("final_state", run.out.final_state, exact.out.final_state, close);
      }
    }
  }
}

struct ConvCase {
  Dtype dtype;
  std::int64_t L, D, W;
  bool bias;
  std::int64_t documents = 0;  ///< in a row; 0: not told
};

void run_conv(const ConvCase& conv) {
  SCOPED_TRACE(fmt::format("{}, L {}, D {}, W {}{}, {} documents", to_string(conv.dtype), conv.L,
                           conv.D, conv.W, conv.bias ? "" : ", no bias", conv.documents));
  // x is a slice of a wider tensor, as it is of in_proj's output.
  OpCheck<Conv> check{
      .inputs = {.x = {.shape = {2, conv.L, conv.D}, .columns_before = 4096, .columns_after = 64},
                 .weight = {.shape = {conv.D, conv.W}}}};
  if (is_slow()) check.inputs.x.columns_before = 96;
  if (conv.bias) check.inputs.bias = {.shape = {conv.D}};
  Draw draw;
  if (conv.documents > 0) {
    TestInput& input = check.inputs.document_start;
    input.shape = {2, conv.L};
    for (std::int64_t i = 0; i < 2 * conv.L; ++i) {
      const std::int64_t row = i / conv.L, step = i % conv.L;
      // Uneven lengths that differ between the rows.
      std::int64_t start = 0;
      for (std::int64_t k = 1; k < conv.documents; ++k) {
        const std::int64_t begins = k * k * conv.L / (conv.documents * conv.documents) + row;
        if (begins <= step) start = begins;
      }
      input.integers.push_back(static_cast<std::int32_t>(start));
    }
  }
  OpRun<Conv> run(check, conv.dtype);
  for (TestTensor* input : {&run.in.x, &run.in.weight, &run.in.bias}) draw.normal(*input);
  run.forward_cuda();
  run.grad_out.u = draw.normal_like(run.out.u);
  run.backward_cuda();
  OpRun<Conv> exact = run.in_f64();
  exact.forward(0);
  exact.backward(0);

  const Close close = conv.dtype == Dtype::kF32 ? Close{3e-4, 1e-3} : Close{1e-2, 5e-2};
  const Close weights{1e-3, 1e-3};
  expect_close("u", run.out.u, exact.out.u, close);
  expect_close("grad_x", run.grad_in.x, exact.grad_in.x, close);
  expect_close("grad_weight", run.grad_in.weight, exact.grad_in.weight, weights);
  expect_close("grad_bias", run.grad_in.bias, exact.grad_in.bias, weights);
}

std::vector<std::int64_t> conv_lengths() {
  return lengths(
      {1, 2, 8, 16, 32, 64, 128, 129, 130, 151, 256, 372, 512, 784, 1024, 1134, 2048, 4096}, 1134);
}

TEST(UpstreamCasesCuda, CausalConv1d) {
  JIBOIA_SKIP_WITHOUT_GPU();
  for (Dtype dtype : {Dtype::kF32, Dtype::kBf16}) {
    for (std::int64_t L : conv_lengths()) {
      for (std::int64_t W : {2, 3, 4}) {
        run_conv({.dtype = dtype, .L = L, .D = 64, .W = W, .bias = true});
        run_conv({.dtype = dtype, .L = L, .D = 64, .W = W, .bias = false});
      }
      if (!is_slow()) run_conv({.dtype = dtype, .L = L, .D = 4128, .W = 4, .bias = true});
    }
    for (std::int64_t W : {2, 3}) {
      const std::int64_t L = is_slow() ? 5 : 151;
      run_conv({.dtype = dtype, .L = L, .D = 4128, .W = W, .bias = true});
    }
  }
}

TEST(UpstreamCasesCuda, CausalConv1dOfSeveralDocuments) {
  JIBOIA_SKIP_WITHOUT_GPU();
  for (Dtype dtype : {Dtype::kF32, Dtype::kBf16}) {
    for (std::int64_t L :
         lengths({8, 16, 32, 64, 128, 256, 512, 784, 1024, 1134, 2048, 4096}, 1134)) {
      for (std::int64_t W : {2, 3, 4}) {
        for (std::int64_t documents : {2, 5}) {
          run_conv({.dtype = dtype, .L = L, .D = 64, .W = W, .bias = true, .documents = documents});
        }
      }
    }
  }
}

// Theirs launches a convolution 10,000 times; a race shows when the GPU is full.
TEST(UpstreamCasesCuda, ManyLaunchesGiveTheSameBits) {
  JIBOIA_SKIP_WITHOUT_GPU();
  const int launches = is_slow() ? 2 : 20;
  const std::int64_t L = is_slow() ? 130 : 2048, D = is_slow() ? 70 : 1536;
  for (Dtype dtype : {Dtype::kF32, Dtype::kBf16}) {
    SCOPED_TRACE(to_string(dtype));
    Draw draw;
    OpRun<Conv> conv(OpCheck<Conv>{.inputs = {.x = {.shape = {2, L, 2 * D}, .columns_after = 2 * D},
                                              .weight = {.shape = {2 * D, 4}, .low = -1, .high = 1},
                                              .bias = {.shape = {2 * D}, .low = -1, .high = 1}}},
                     dtype);
    draw.normal(conv.in.x);
    conv.forward_cuda(launches);
    conv.grad_out.u = draw.normal_like(conv.out.u);
    conv.backward_cuda(launches);

    OpRun<Scan> scan(scan_of(2, L, D, 16), dtype);
    for (TestTensor* input : {&scan.in.u, &scan.in.b, &scan.in.c, &scan.in.d_skip, &scan.in.z}) {
      draw.normal(*input);
    }
    draw.log_uniform(scan.in.a_log, 1, 16);
    scan.forward_cuda(launches);
    scan.grad_out.y = draw.normal_like(scan.out.y);
    scan.backward_cuda(launches);
  }
}

/// The inner part of a Mamba block, op by op: convolution, projections, scan, output projection.
struct InnerBlock {
  OpRun<Conv> conv;
  OpRun<Linear> x_proj, dt_proj, out_proj;
  OpRun<Scan> scan;

  /// Runs `pass` of every op where it computes.
  template <class Forward>
  void forward(const Forward& pass) {
    pass(conv);
    x_proj.in.x = conv.out.u;
    pass(x_proj);
    const std::int64_t R = dt_proj.in.weight.spec().shape[1], N = scan.in.a_log.spec().shape[1];
    dt_proj.in.x = columns(x_proj.out.y, 0, R);
    pass(dt_proj);
    scan.in.u = conv.out.u;
    scan.in.dt = dt_proj.out.y;
    scan.in.b = columns(x_proj.out.y, R, N);
    scan.in.c = columns(x_proj.out.y, R + N, N);
    pass(scan);
    out_proj.in.x = scan.out.y;
    pass(out_proj);
  }
  template <class Backward>
  void backward(const TestTensor& grad_out, const Backward& pass) {
    out_proj.grad_out.y = grad_out;
    pass(out_proj);
    scan.grad_out.y = out_proj.grad_in.x;
    pass(scan);
    dt_proj.grad_out.y = scan.grad_in.dt;
    pass(dt_proj);
    x_proj.grad_out.y = TestTensor(x_proj.out.y.spec());
    const TestTensor* parts[] = {&dt_proj.grad_in.x, &scan.grad_in.b, &scan.grad_in.c};
    std::int64_t column = 0;
    for (const TestTensor* part : parts) {
      const std::int64_t width = part->spec().columns();
      for (std::int64_t i = 0; i < part->size(); ++i) {
        x_proj.grad_out.y.set(i / width * x_proj.out.y.spec().columns() + column + i % width,
                              part->get(i));
      }
      column += width;
    }
    pass(x_proj);
    conv.grad_out.u = TestTensor(conv.out.u.spec());
    for (std::int64_t i = 0; i < conv.out.u.size(); ++i) {
      conv.grad_out.u.set(i, scan.grad_in.u.get(i) + x_proj.grad_in.x.get(i));
    }
    pass(conv);
  }

  /// A slice of columns, which keeps the distance between its rows.
  static TestTensor columns(const TestTensor& whole, std::int64_t begin, std::int64_t count) {
    const Spec& spec = whole.spec();
    TestTensor part(Spec(spec.dtype, spec.shape.with(-1, count)), begin,
                    spec.columns() - begin - count);
    for (std::int64_t i = 0; i < part.size(); ++i) {
      part.set(i, whole.get(i / count * spec.columns() + begin + i % count));
    }
    return part;
  }
};

TEST(UpstreamCasesCuda, MambaInner) {
  JIBOIA_SKIP_WITHOUT_GPU();
  const std::int64_t B = 2, L = is_slow() ? 40 : 128, D = is_slow() ? 96 : 768, N = 8, R = 48;
  const auto linear_of = [&](std::int64_t rows, std::int64_t columns) {
    return OpRun<Linear>(OpCheck<Linear>{
        .inputs = {.x = {.shape = {B, L, columns}}, .weight = {.shape = {rows, columns}}}});
  };
  InnerBlock single{
      .conv = OpRun<Conv>(OpCheck<Conv>{
          .inputs = {.x = {.shape = {B, L, D}, .columns_before = 0, .columns_after = D},
                     .weight = {.shape = {D, 3}},
                     .bias = {.shape = {D}}}}),
      .x_proj = linear_of(R + 2 * N, D),
      .dt_proj = linear_of(D, R),
      .out_proj = linear_of(D / 2, D),
      .scan = OpRun<Scan>(scan_of(B, L, D, N))};
  single.scan.in.z = TestTensor(Spec(Dtype::kF32, {B, L, D}), D);
  Draw draw;
  for (TestTensor* input :
       {&single.conv.in.x, &single.scan.in.z, &single.conv.in.weight, &single.conv.in.bias,
        &single.x_proj.in.weight, &single.dt_proj.in.weight, &single.out_proj.in.weight,
        &single.scan.in.d_skip}) {
    draw.normal(*input);
  }
  draw.log_uniform(single.scan.in.a_log, 0, 0.5);
  InnerBlock exact{.conv = single.conv.in_f64(),
                   .x_proj = single.x_proj.in_f64(),
                   .dt_proj = single.dt_proj.in_f64(),
                   .out_proj = single.out_proj.in_f64(),
                   .scan = single.scan.in_f64()};

  single.forward([](auto& op) { op.forward_cuda(); });
  exact.forward([](auto& op) { op.forward(0); });
  const TestTensor grad_out = draw.normal_like(single.out_proj.out.y);
  TestTensor exact_grad_out(exact.out_proj.out.y.spec());
  for (std::int64_t i = 0; i < grad_out.size(); ++i) exact_grad_out.set(i, grad_out.get(i));
  single.backward(grad_out, [](auto& op) { op.backward_cuda(); });
  exact.backward(exact_grad_out, [](auto& op) { op.backward(0); });

  // Theirs holds two f32 outputs to 6e-4 and 2e-3 of each other and only prints the gradients.
  // With weights of variance 1 elements are sums of thousands that nearly cancel, in which f32
  // itself is further than that from f64: the largest element is the measure.
  const std::tuple<const char*, TestTensor, TestTensor> results[] = {
      {"out", single.out_proj.out.y, exact.out_proj.out.y},
      {"grad_x", single.conv.grad_in.x, exact.conv.grad_in.x},
      {"grad_z", single.scan.grad_in.z, exact.scan.grad_in.z},
      {"grad of conv's weight", single.conv.grad_in.weight, exact.conv.grad_in.weight},
      {"grad of conv's bias", single.conv.grad_in.bias, exact.conv.grad_in.bias},
      {"grad of x_proj", single.x_proj.grad_in.weight, exact.x_proj.grad_in.weight},
      {"grad of dt_proj", single.dt_proj.grad_in.weight, exact.dt_proj.grad_in.weight},
      {"grad of dt_bias", single.scan.grad_in.dt_bias, exact.scan.grad_in.dt_bias},
      {"grad of a_log", single.scan.grad_in.a_log, exact.scan.grad_in.a_log},
      {"grad of d_skip", single.scan.grad_in.d_skip, exact.scan.grad_in.d_skip},
      {"grad of out_proj", single.out_proj.grad_in.weight, exact.out_proj.grad_in.weight}};
  for (const auto& [name, got, want] : results) {
    EXPECT_EQ(difference(name, got, want, 1e-4, 1e-6), "");
  }
}

}  // namespace
}  // namespace jiboia::test
