#pragma once
#include <vector>

#include "core/op.h"

/// Ops with an error, for testing the check of ops.
namespace jiboia::test::detail {

/// Op with the gradient of one input off by one part in ten thousand, as if its formula were: what
/// was in memory before stays right.
template <class Op>
struct Planted : Op {
  inline static std::size_t input = 0;
  template <class Args, class Backward>
  static void spoil(const Args& args, Backward backward) {
    const Grad& grad = fields<const Grad>(args.grad_in)[input];
    if (!grad) return backward();
    visit_float(grad.dtype, [&]<class T>() {
      std::vector<T> before;
      const auto visit = [&](auto change) {
        for (std::int64_t i = 0; i < grad.size(); ++i) {
          const std::int64_t row = i / grad.columns(), column = i % grad.columns();
          change(grad.template as<T>()[row * grad.row_stride + column], i);
        }
      };
      visit([&](const T& x, std::int64_t) {
        before.push_back(grad.mode == GradMode::kAdd ? x : T(0));
      });
      backward();
      visit([&](T& x, std::int64_t i) {
        const T own = x - before[static_cast<std::size_t>(i)];
        x += T(1e-4) * own;
      });
    });
  }
};
template <class Op>
struct PlantedOp : Planted<Op> {
  static void backward(CpuExec& cpu, const BackwardArgs<PlantedOp>& args) {
    Planted<Op>::spoil(args, [&] {
      Op::backward(cpu, BackwardArgs<Op>{args.in, args.out, args.attrs, args.grad_out, args.grad_in,
                                         args.scratch});
    });
  }
  static void forward(CpuExec& cpu, const ForwardArgs<PlantedOp>& args) {
    Op::forward(cpu, ForwardArgs<Op>{args.in, args.out, args.attrs, args.scratch});
  }
};
template <class Op>
struct PlantedLoss : Planted<Op> {
  static void forward_backward(CpuExec& cpu, const LossArgs<PlantedLoss>& args) {
    Planted<Op>::spoil(args, [&] {
      Op::forward_backward(cpu,
                           LossArgs<Op>{args.in, args.out, args.attrs, args.grad_in, args.scratch});
    });
  }
  static void forward(CpuExec& cpu, const ForwardArgs<PlantedLoss>& args) {
    Op::forward(cpu, ForwardArgs<Op>{args.in, args.out, args.attrs, args.scratch});
  }
};

}  // namespace jiboia::test::detail
