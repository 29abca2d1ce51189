#include "kernels/add_rms_norm/add_rms_norm.h"

#include "tests/support/op_check_cuda.h"

namespace jiboia::test {
namespace {

void plain_add_rms_norm(const AddRmsNorm::In<>& in, const AddRmsNorm::Attrs& attrs,
                        const AddRmsNorm::Out<>& out) {
  const std::int64_t E = in.residual.columns();
  for (std::int64_t row = 0; row < in.residual.rows(); ++row) {
    std::vector<double> x(static_cast<std::size_t>(E));
    double squares = 0;
    for (std::int64_t i = 0; i < E; ++i) {
      auto& value = x[static_cast<std::size_t>(i)];
      value = in.residual.as<double>()[row * E + i];
      if (in.update) {
        value += in.update.as<double>()[row * E + i];
        out.sum.as<double>()[row * E + i] = value;
      }
      squares += value * value;
    }
    const double rstd = 1 / std::sqrt(squares / static_cast<double>(E) + attrs.eps);
    for (std::int64_t i = 0; i < E; ++i) {
      out.normed.as<double>()[row * E + i] =
          in.weight.as<double>()[i] * x[static_cast<std::size_t>(i)] * rstd;
    }
  }
}

OpCheck<AddRmsNorm> check_of(const Shape& shape, bool with_update) {
  OpCheck<AddRmsNorm> check{.inputs = {.residual = {.shape = shape, .low = -2, .high = 2},
                                       .weight = {.shape = {shape[-1]}, .low = 0.5, .high = 1.5}},
                            .saved_outputs = {"rstd"},
                            .reference = plain_add_rms_norm};
  if (with_update) {
    check.inputs.update = {.shape = shape, .low = -1, .high = 1};
  } else {
    check.inputs.residual.free_dimensions = {0, 1};
  }
  return check;
}

TEST(AddRmsNorm, PassesOpCheck) {
  for (const Shape& shape : {Shape{1, 1, 1}, Shape{2, 3, 5}, Shape{3, 70, 33}, Shape{1, 130, 64}}) {
    check_op(check_of(shape, true));
    check_op(check_of(shape, false));
  }
}

TEST(AddRmsNorm, PlantedErrorsAreCaught) {
  check_op(check_of({2, 3, 17}, true), PlantErrors::kYes);
}

TEST(AddRmsNormCuda, PassesOpCheck) {
  // Rows that are no whole vectors, rows that share a block, rows of one and of many warps, and
  // rows that are too long for registers.
  for (std::int64_t E :
       {1, 3, 4, 33, 384, 388, 768, 772, 1024, 1028, 2052, 4096, 4097, 4100, 16'384, 16'388}) {
    for (std::int64_t rows : {1, 3, 5}) {
      SCOPED_TRACE(fmt::format("E {}, rows {}", E, rows));
      check_op_cuda(check_of({rows, E}, true));
      if (rows == 3) check_op_cuda(check_of({rows, 1, E}, false));
    }
  }
}

TEST(AddRmsNormCuda, PassesOpCheckOverManyRows) {
  // More rows than there are tiles, so that a tile has several.
  check_op_cuda(check_of({529, 5}, true));
  check_op_cuda(check_of({530, 4}, true));
  check_op_cuda(check_of({2115, 4}, true));
  check_op_cuda(check_of({5000, 4}, true));
  // Several rows a tile, each of several warps.
  check_op_cuda(check_of({600, 517}, true));
  check_op_cuda(check_of({600, 1028}, true));
}

TEST(AddRmsNormCuda, PlantedErrorsAreCaught) {
  check_op_cuda(check_of({2, 3, 17}, true), PlantErrors::kYes);
  check_op_cuda(check_of({2, 3, 16}, true), PlantErrors::kYes);
}

}  // namespace
}  // namespace jiboia::test
