#include "kernels/causal_conv1d/causal_conv1d_backward_runs.cuh"
#include "kernels/causal_conv1d/causal_conv1d_runs.cuh"
#include "kernels/column_sums.cuh"

namespace jiboia {
namespace {

// The kernels of this file take every width and every layout, element by element.

template <class T>
__device__ float convolve(const Operands<T>& at, std::int64_t batch, std::int64_t t,
                          std::int64_t channel) {
  float s = at.bias ? at.bias[channel] : 0;
  for (int back = at.reach(batch, t); back >= 0; --back) {
    const T* from = at.step(batch, t - back);
    if (from) s += at.weight[channel * at.W + at.W - 1 - back] * cuda::to_float(from[channel]);
  }
  return s;
}

/// Block kThreads, a thread an element; no shared memory.
template <class T>
__global__ void __launch_bounds__(kThreads) forward_any(const Operands<T> at, Rows<T> u) {
  const std::int64_t i = std::int64_t{blockIdx.x} * kThreads + threadIdx.x;
  const std::int64_t row = i / at.D, channel = i % at.D;
  if (row >= at.B * at.L) return;
  const float s = convolve(at, row / at.L, row % at.L, channel);
  u[row][channel] = cuda::from_float<T>(s * sigmoid<T>(s));
}

/// The gradient of s.
template <class T>
__device__ float grad_of_s(const Operands<T>& at, const Rows<const T>& grad_u, std::int64_t batch,
                           std::int64_t t, std::int64_t channel) {
  if (!grad_u.data) return 0;
  const float grad = cuda::to_float(grad_u[batch * at.L + t][channel]);
  return grad * silu_slope<T>(convolve(at, batch, t, channel));
}

/// Block kThreads, a thread an element; no shared memory. W^2 multiplications an element.
template <class T>
__global__ void __launch_bounds__(kThreads)
    grad_x_any(const Operands<T> at, Rows<const T> grad_u, GradRows<T> grad_x) {
  const std::int64_t i = std::int64_t{blockIdx.x} * kThreads + threadIdx.x;
  const std::int64_t row = i / at.D, channel = i % at.D;
  if (row >= at.B * at.L) return;
  const std::int64_t batch = row / at.L, t = row % at.L;
  float grad = 0;
  for (std::int64_t later = 0; later < at.W && t + later < at.L; ++later) {
    if (later > at.reach(batch, t + later)) continue;
    grad += at.weight[channel * at.W + at.W - 1 - later] *
            grad_of_s(at, grad_u, batch, t + later, channel);
  }
  cuda::put(grad_x.mode, grad_x[row][channel], grad);
}

/// Block kThreads, a thread a channel of a tile of steps, whose sums grow in memory; no shared
/// memory.
template <class T>
__global__ void __launch_bounds__(kThreads)
    sums_any(const Operands<T> at, const Cut cut, Rows<const T> grad_u, Partials partials) {
  const std::int64_t i = std::int64_t{blockIdx.x} * kThreads + threadIdx.x;
  const std::int64_t tile = i / at.D, channel = i % at.D;
  if (tile >= cut.tiles) return;
  const std::int64_t batch = tile / cut.tiles_per_row;
  const std::int64_t begin = tile % cut.tiles_per_row * cut.steps * kLanes;
  const std::int64_t end = begin + cut.steps * kLanes < at.L ? begin + cut.steps * kLanes : at.L;
  float* weight_sums = partials.weight ? partials.weight + i * at.W : nullptr;
  for (std::int64_t k = 0; weight_sums && k < at.W; ++k) weight_sums[k] = 0;
  float bias_sum = 0;
  for (std::int64_t t = begin; t < end; ++t) {
    const float grad = grad_of_s(at, grad_u, batch, t, channel);
    bias_sum += grad;
    for (int back = at.reach(batch, t); weight_sums && back >= 0; --back) {
      const T* from = at.step(batch, t - back);
      if (from) weight_sums[at.W - 1 - back] += grad * cuda::to_float(from[channel]);
    }
  }
  if (partials.bias) partials.bias[i] = bias_sum;
}

/// Whether the kernels of runs take these tensors.
bool takes_runs(const CausalConv1d::In<>& in, const Cut& cut,
                std::initializer_list<Tensor> others) {
  const std::int64_t W = in.weight.columns();
  bool takes = W >= 2 && W <= kMaxTaps && cut.fits();
  for (const Tensor& tensor : {in.weight, in.bias}) {  // absent ones are at 0
    takes = takes && cuda::aligned(tensor.data, sizeof(cuda::Vector<float, kWidth>));
  }
  for (const Tensor& tensor : {in.x, in.history}) {
    takes = takes && cuda::takes_vectors<kWidth>(tensor);
  }
  for (const Tensor& tensor : others) takes = takes && cuda::takes_vectors<kWidth>(tensor);
  return takes;
}

/// Calls visitor.template operator()<kTaps>() with kTaps = W, which is 2, 3 or 4.
template <class Visitor>
void visit_taps(std::int64_t W, Visitor visitor) {
  if (W == 2) visitor.template operator()<2>();
  if (W == 3) visitor.template operator()<3>();
  if (W == 4) visitor.template operator()<4>();
}

dim3 grid_of_elements(std::int64_t elements) {
  return dim3(static_cast<unsigned>(ceil_div(elements, kThreads)));
}

}  // namespace

std::int64_t CausalConv1d::scratch_bytes(const CudaExec&, Pass pass, const In<Spec>& in,
                                         const Attrs&) {
  if (pass == Pass::kForward) return 0;
  const std::int64_t tiles = Cut::backward(in.x.shape[0], in.x.shape[1], in.x.shape[2]).tiles;
  return static_cast<std::int64_t>(ScratchReader::padded_bytes<float>(tiles * in.weight.size()) +
                                   ScratchReader::padded_bytes<float>(tiles * in.x.columns()));
}

void CausalConv1d::forward(CudaExec& gpu, const ForwardArgs<CausalConv1d>& args) {
  const In<>& in = args.in;
  cuda::visit_stored(in.x.dtype, [&]<class T>() {
    const Operands<T> at(in);
    const Rows<T> u(args.out.u);
    const Cut cut(at.B, at.L, at.D, kForwardSteps);
    if (!takes_runs(in, cut, {args.out.u})) {
      cuda::launch(gpu, kName, forward_any<T>,
                   {.grid = grid_of_elements(at.B * at.L * at.D), .block = dim3(kThreads)}, at, u);
      return;
    }
    visit_taps(at.W, [&]<int kTaps>() {
      const auto kernel =
          in.document_start ? forward_steps<T, kTaps, true> : forward_steps<T, kTaps, false>;
      cuda::launch(gpu, kName, kernel, {.grid = cut.grid(), .block = dim3(kSide, kLanes)}, at, cut,
                   u);
    });
  });
}

void CausalConv1d::backward(CudaExec& gpu, const BackwardArgs<CausalConv1d>& args) {
  const In<>& in = args.in;
  const Grad &grad_weight = args.grad_in.weight, &grad_bias = args.grad_in.bias;
  cuda::visit_stored(in.x.dtype, [&]<class T>() {
    const Operands<T> at(in);
    const Cut cut = Cut::backward(at.B, at.L, at.D);
    const Rows<const T> grad_u(args.grad_out.u);
    const GradRows<T> grad_x(args.grad_in.x);
    ScratchReader scratch(args.scratch);
    Partials partials;
    if (grad_weight) partials.weight = scratch.take<float>(cut.tiles * at.D * at.W);
    if (grad_bias) partials.bias = scratch.take<float>(cut.tiles * at.D);
    if (grad_u.data && takes_runs(in, cut, {args.grad_out.u, args.grad_in.x})) {
      visit_taps(at.W, [&]<int kTaps>() {
        const auto kernel =
            in.document_start ? backward_runs<T, kTaps, true> : backward_runs<T, kTaps, false>;
        cuda::launch(gpu, kName, kernel, {.grid = cut.grid(), .block = dim3(kSide, kLanes)}, at,
                     cut, grad_u, grad_x, partials);
      });
    } else {
      if (args.grad_in.x) {
        cuda::launch(gpu, kName, grad_x_any<T>,
                     {.grid = grid_of_elements(at.B * at.L * at.D), .block = dim3(kThreads)}, at,
                     grad_u, grad_x);
      }
      cuda::launch(gpu, kName, sums_any<T>,
                   {.grid = grid_of_elements(cut.tiles * at.D), .block = dim3(kThreads)}, at, cut,
                   grad_u, partials);
    }
    cuda::sum_partials(gpu, kName, cut.tiles,
                       {{partials.weight, grad_weight}, {partials.bias, grad_bias}});
  });
}

}  // namespace jiboia
