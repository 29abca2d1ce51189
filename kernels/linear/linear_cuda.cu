#include <algorithm>

#include "kernels/column_sums.cuh"
#include "kernels/linear/linear.h"
#include "kernels/matrix_cuda.h"

namespace jiboia {
namespace {

constexpr unsigned kThreads = 256;

/// y[row] = bias, for every row.
/// Grid (ceil(M / 256), up to 4096 rows at a time), block 256. Limited by writing y.
template <class T>
__global__ void __launch_bounds__(kThreads)
    fill_rows(cuda::Rows<T> y, std::int64_t rows, std::int64_t M, const float* __restrict__ bias) {
  const std::int64_t column = std::int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (column >= M) return;
  const T value = cuda::from_float<T>(bias[column]);
  for (std::int64_t row = blockIdx.y; row < rows; row += gridDim.y) y[row][column] = value;
}

}  // namespace

std::int64_t Linear::scratch_bytes(const CudaExec&, Pass pass, const In<Spec>& in, const Attrs&) {
  if (pass == Pass::kForward || !in.bias) return 0;
  return cuda::column_sums_scratch_bytes(in.x.rows(), in.bias.columns());
}

// The bias is stored as y is, and the product added to it. In bf16 that rounds the bias, the sum,
// and, where the library does so (core/cuda/blas.h), the product.
void Linear::forward(CudaExec& gpu, const ForwardArgs<Linear>& args) {
  const Tensor& y = args.out.y;
  if (args.in.bias) {
    cuda::visit_stored(y.dtype, [&]<class T>() {
      const auto row_blocks = static_cast<unsigned>(std::min<std::int64_t>(y.rows(), 4096));
      cuda::launch(
          gpu, kName, fill_rows<T>,
          {.grid = dim3(static_cast<unsigned>(ceil_div(y.columns(), kThreads)), row_blocks),
           .block = dim3(kThreads)},
          cuda::Rows<T>(y), y.rows(), y.columns(), args.in.bias.as<float>());
    });
  }
  multiply(gpu, kName, args.in.bias ? GradMode::kAdd : GradMode::kOverwrite, device_matrix(y),
           device_matrix(args.in.x), transpose(device_matrix(args.in.weight)));
}

void Linear::backward(CudaExec& gpu, const BackwardArgs<Linear>& args) {
  const Tensor& grad_y = args.grad_out.y;
  if (const Grad& grad = args.grad_in.x) {
    multiply(gpu, kName, grad.mode, device_matrix(grad), device_matrix(grad_y),
             device_matrix(args.in.weight));
  }
  if (const Grad& grad = args.grad_in.weight) {
    multiply(gpu, kName, grad.mode, device_matrix(grad), transpose(device_matrix(grad_y)),
             device_matrix(args.in.x));
  }
  if (const Grad& grad = args.grad_in.bias) {
    cuda::column_sums(gpu, kName, grad_y, grad, args.scratch);
  }
}

}  // namespace jiboia
