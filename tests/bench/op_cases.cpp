#include "tests/bench/op_cases.h"

#include <cmath>
#include <set>

#include "core/rng.h"
#include "kernels/adamw/adamw.h"
#include "kernels/add_rms_norm/add_rms_norm.h"
#include "kernels/causal_conv1d/causal_conv1d.h"
#include "kernels/convert/convert.h"
#include "kernels/cross_entropy/cross_entropy.h"
#include "kernels/embedding/embedding.h"
#include "kernels/global_norm/global_norm.h"
#include "kernels/linear/linear.h"
#include "kernels/selective_scan/selective_scan.h"

namespace jiboia::bench {
namespace {

/// What passes have to do. T: bytes of an activation, G: of a gradient of a parameter or of an
/// element of the residual stream. Parameters that are small beside activations are left out.
struct WorkTable {
  double T, G;

  /// u, dt, z, y; b and c.
  Work scan_forward(double tokens, double D, double N) const {
    return {tokens * (4 * D + 2 * N) * T, 0};
  }
  /// u, dt, z, grad_y, grad_u, grad_dt, grad_z; b, c and their gradients.
  Work scan_backward(double tokens, double D, double N) const {
    return {tokens * (7 * D + 4 * N) * T, 0};
  }
  /// x, u.
  Work conv_forward(double tokens, double D) const { return {tokens * 2 * D * T, 0}; }
  /// x, grad_u, grad_x.
  Work conv_backward(double tokens, double D) const { return {tokens * 3 * D * T, 0}; }
  /// residual, sum; update, normed.
  Work norm_forward(double tokens, double E) const { return {tokens * E * (2 * G + 2 * T), 0}; }
  /// sum, grad_sum, grad_residual; grad_normed, grad_update.
  Work norm_backward(double tokens, double E) const { return {tokens * E * (3 * G + 2 * T), 0}; }
  /// x, weight, y.
  Work linear_forward(double rows, double K, double M) const {
    return {(rows * K + M * K + rows * M) * T, 2 * rows * K * M};
  }
  /// x, weight, grad_y; grad_x, read before where it is added to; grad_weight, read and written.
  Work linear_backward(double rows, double K, double M, bool adds) const {
    const double grad_x = rows * K * (adds ? 2 : 1);
    return {(rows * K + M * K + rows * M + grad_x) * T + 2 * M * K * G, 4 * rows * K * M};
  }
  /// x, weight; logits need not be stored.
  Work loss_forward(double tokens, double E, double V) const {
    return {(tokens * E + V * E) * T, 2 * tokens * E * V};
  }
  /// Both passes at once: x, grad_x, weight; grad_weight, read and written.
  Work loss_backward(double tokens, double E, double V) const {
    return {(2 * tokens * E + V * E) * T + 2 * V * E * G, 6 * tokens * E * V};
  }
  /// A row of the weight and one of x for each token, as if no two tokens were equal.
  Work embedding_forward(double tokens, double E) const { return {tokens * E * (T + G), 0}; }
  /// grad_x; what it adds to rows of grad_weight depends on the tokens.
  Work embedding_backward(double tokens, double E) const { return {tokens * E * G, 0}; }
  /// value, moments, read and written, gradient; the rounded copy where activations are bf16.
  Work adamw(double n) const { return {n * (7 * G + (T < G ? T : 0)), 0}; }
  Work global_norm(double n) const { return {n * G, 0}; }
  Work convert(double n) const { return {n * (4 + 2), 0}; }
};

/// What all tensors have in common.
struct Setting {
  Dtype activation, full;
  std::int64_t document_length;

  Tensor document_start(BenchTensors& tensors, const ModelShape& shape) const {
    if (document_length == 0) return {};
    return tensors.filled(Spec(Dtype::kI32, {shape.B, shape.L}), [&, this](std::int64_t i) {
      return static_cast<double>(i % shape.L / document_length * document_length);
    });
  }
  Tensor weight(BenchTensors& tensors, std::int64_t M, std::int64_t K) const {
    return tensors.normal(Spec(activation, {M, K}), 1 / std::sqrt(static_cast<double>(3 * K)));
  }
};

/// Token k with a probability of about 1 / (k + 1), as in text: the first one is 7 % of all.
Tensor tokens_of(BenchTensors& tensors, const ModelShape& shape) {
  const Philox random(2, RandomPurpose::kTest);
  return tensors.filled(Spec(Dtype::kI32, {shape.B, shape.L}), [&](std::int64_t i) {
    const double u = random.uniform(static_cast<std::uint64_t>(i));
    return std::pow(static_cast<double>(shape.V), u) - 1;
  });
}

class CaseList {
 public:
  CaseList(Dtype activation, std::int64_t document_length)
      : setting_{activation, accumulator_of(activation), document_length},
        work_{static_cast<double>(size_of(activation)),
              static_cast<double>(size_of(accumulator_of(activation)))} {}

  void add_block(const ModelShape& shape);
  void add_head(const ModelShape& shape);
  void add_optimizer(std::int64_t parameters);
  std::vector<OpCase> take() { return std::move(cases_); }

 private:
  void add_scan(const ModelShape& shape);
  void add_convolution(const ModelShape& shape);
  void add_norm(const ModelShape& shape);
  /// `row`, `begin`: x is `K` columns from `begin` of rows of `row` elements.
  struct Product {
    const char* name;
    std::int64_t K, M, row, begin;
    bool adds;  ///< to grad_x
  };
  void add_linear(const ModelShape& shape, const Product& product);
  void add(OpCase one) {
    if (names_.insert(one.op + one.shape).second) cases_.push_back(std::move(one));
  }

  /// "(32, 1536)", and the length where it is not the usual one.
  static std::string text(const ModelShape& shape, std::int64_t width) {
    const std::string length = shape.L == 2048 ? "" : fmt::format(" L {}", shape.L);
    return fmt::format("({}, {}){}", shape.B, width, length);
  }

  Setting setting_;
  WorkTable work_;
  std::vector<OpCase> cases_;
  std::set<std::string> names_;
};

void CaseList::add_scan(const ModelShape& shape) {
  const std::int64_t B = shape.B, L = shape.L, D = shape.D(), N = shape.N, R = shape.R();
  const auto tokens = static_cast<double>(shape.tokens()), d = static_cast<double>(D);
  add({.op = "selective_scan",
       .shape = text(shape, D),
       .forward = work_.scan_forward(tokens, d, static_cast<double>(N)),
       .backward = work_.scan_backward(tokens, d, static_cast<double>(N)),
       .prepare = [=, setting = setting_](BenchTensors& tensors) {
         const Tensor xz = tensors.normal(Spec(setting.activation, {B, L, 2 * D}));
         const Tensor dt_b_c = tensors.normal(Spec(setting.activation, {B, L, R + 2 * N}));
         return launches_of<SelectiveScan>(
             tensors, {.in = {.u = tensors.normal(Spec(setting.activation, {B, L, D})),
                              .dt = tensors.normal(Spec(setting.activation, {B, L, D}), 0.5),
                              .a_log = first_a_log(tensors, Spec(setting.full, {D, N})),
                              .b = columns_of(dt_b_c, R, N),
                              .c = columns_of(dt_b_c, R + N, N),
                              .d_skip = tensors.filled(Spec(setting.full, {D}),
                                                       [](std::int64_t) { return 1.0; }),
                              .z = columns_of(xz, D, D),
                              .dt_bias = first_dt_bias(tensors, Spec(setting.full, {D})),
                              .document_start = setting.document_start(tensors, shape)},
                       .used = {.y = true}});
       }});
}

void CaseList::add_convolution(const ModelShape& shape) {
  const std::int64_t B = shape.B, L = shape.L, D = shape.D();
  const auto tokens = static_cast<double>(shape.tokens()), d = static_cast<double>(D);
  add({.op = "causal_conv1d",
       .shape = text(shape, D),
       .forward = work_.conv_forward(tokens, d),
       .backward = work_.conv_backward(tokens, d),
       .prepare = [=, setting = setting_](BenchTensors& tensors) {
         const Tensor xz = tensors.normal(Spec(setting.activation, {B, L, 2 * D}));
         return launches_of<CausalConv1d>(
             tensors, {.in = {.x = columns_of(xz, 0, D),
                              .weight = tensors.normal(Spec(setting.full, {D, shape.W}), 0.3),
                              .bias = tensors.normal(Spec(setting.full, {D}), 0.3),
                              .document_start = setting.document_start(tensors, shape)},
                       .used = {.u = true}});
       }});
}

void CaseList::add_norm(const ModelShape& shape) {
  const std::int64_t B = shape.B, L = shape.L, E = shape.E;
  const auto tokens = static_cast<double>(shape.tokens()), e = static_cast<double>(E);
  add({.op = "add_rms_norm",
       .shape = text(shape, E),
       .forward = work_.norm_forward(tokens, e),
       .backward = work_.norm_backward(tokens, e),
       .prepare = [=, setting = setting_](BenchTensors& tensors) {
         return launches_of<AddRmsNorm>(
             tensors, {.in = {.residual = tensors.normal(Spec(setting.full, {B, L, E})),
                              .update = tensors.normal(Spec(setting.activation, {B, L, E})),
                              .weight = tensors.normal(Spec(setting.full, {E}))},
                       .attrs = {.activations = activations_beside(setting.activation)},
                       .used = {.sum = true, .normed = true}});
       }});
}

void CaseList::add_linear(const ModelShape& shape, const Product& product) {
  const auto tokens = static_cast<double>(shape.tokens());
  const auto k = static_cast<double>(product.K), m = static_cast<double>(product.M);
  add({.op = product.name,
       .shape = fmt::format("{} to {}", text(shape, product.K), product.M),
       .forward = work_.linear_forward(tokens, k, m),
       .backward = work_.linear_backward(tokens, k, m, product.adds),
       .prepare = [=, setting = setting_](BenchTensors& tensors) {
         const Tensor rows =
             tensors.normal(Spec(setting.activation, {shape.B, shape.L, product.row}));
         return launches_of<Linear>(
             tensors, {.in = {.x = columns_of(rows, product.begin, product.K),
                              .weight = setting.weight(tensors, product.M, product.K)},
                       .used = {.y = true},
                       .activations = product.adds ? GradMode::kAdd : GradMode::kOverwrite});
       }});
}

void CaseList::add_block(const ModelShape& shape) {
  const std::int64_t E = shape.E, D = shape.D(), R = shape.R(), x_proj = R + 2 * shape.N;
  add_scan(shape);
  add_convolution(shape);
  add_norm(shape);
  add_linear(shape, {"linear.in_proj", E, 2 * D, E, 0, false});
  // The scan has written the gradient of u before x_proj does.
  add_linear(shape, {"linear.x_proj", D, x_proj, D, 0, true});
  add_linear(shape, {"linear.dt_proj", R, D, x_proj, 0, false});
  add_linear(shape, {"linear.out_proj", D, E, D, 0, false});
}

void CaseList::add_head(const ModelShape& shape) {
  const std::int64_t B = shape.B, L = shape.L, E = shape.E, V = shape.V;
  const auto count = static_cast<double>(shape.tokens()), e = static_cast<double>(E);
  const std::string name = fmt::format("{} V {}", text(shape, E), V);
  add({.op = "cross_entropy",
       .shape = name,
       .forward = work_.loss_forward(count, e, static_cast<double>(V)),
       .backward = work_.loss_backward(count, e, static_cast<double>(V)),
       .prepare = [=, setting = setting_](BenchTensors& tensors) {
         return launches_of<CrossEntropy>(
             tensors, {.in = {.x = tensors.normal(Spec(setting.activation, {B, L, E})),
                              .weight = setting.weight(tensors, V, E),
                              .targets = tokens_of(tensors, shape)},
                       .attrs = {.z_loss = 1e-4}});
       }});
  add({.op = "embedding",
       .shape = name,
       .forward = work_.embedding_forward(count, e),
       .backward = work_.embedding_backward(count, e),
       .prepare = [=, setting = setting_](BenchTensors& tensors) {
         return launches_of<Embedding>(tensors, {.in = {.tokens = tokens_of(tensors, shape),
                                                        .weight = setting.weight(tensors, V, E)},
                                                 .used = {.x = true}});
       }});
}

void CaseList::add_optimizer(std::int64_t parameters) {
  const Spec flat(setting_.full, {parameters}), scalar(Dtype::kF64, {1});
  const std::string shape = fmt::format("({})", parameters);
  const auto n = static_cast<double>(parameters);
  const auto on_backend = [](BenchTensors& tensors, auto run) {
    return Launches{[&exec = tensors.exec(), run] { std::visit(run, exec); }, {}};
  };
  add({.op = "adamw",
       .shape = shape,
       .forward = work_.adamw(n),
       .prepare = [=, setting = setting_](BenchTensors& tensors) {
         AdamWUpdate update{
             .value = tensors.normal(flat, 0.02),
             .gradient = tensors.normal(flat, 1e-3),
             .exp_avg = tensors.normal(flat, 1e-4),
             .exp_avg_sq = tensors.filled(flat, [](std::int64_t) { return 1e-7; }),
             .decays = tensors.filled(Spec(Dtype::kU8, {ceil_div(parameters, kDecayBlock)}),
                                      [](std::int64_t) { return 1; }),
             .gradient_norm = tensors.zeros(scalar),
             .rates = tensors.filled(Spec(Dtype::kF64, {kAdamWRates}),
                                     [](std::int64_t i) { return i == 1 ? 1e-6 : 1; }),
             .grad_clip = 1};
         if (setting.activation == Dtype::kBf16) {
           update.compute = tensors.zeros(Spec(setting.activation, flat.shape));
         }
         return on_backend(tensors, [update](auto& backend) { adamw(backend, update); });
       }});
  add({.op = "global_norm",
       .shape = shape,
       .forward = work_.global_norm(n),
       .prepare = [=](BenchTensors& tensors) {
         const GlobalNorm norm{.flat = tensors.normal(flat),
                               .norm = tensors.zeros(scalar),
                               .first_not_finite = tensors.zeros(Spec(Dtype::kI64, {1}))};
         const Tensor memory =
             tensors.zeros(Spec(Dtype::kU8, {global_norm_scratch_bytes(parameters)}));
         const std::span<std::byte> scratch(static_cast<std::byte*>(memory.data),
                                            static_cast<std::size_t>(memory.size()));
         return on_backend(tensors, [=](auto& backend) { global_norm(backend, norm, scratch); });
       }});
  add({.op = "convert",
       .shape = shape,
       .forward = work_.convert(n),
       .prepare = [=](BenchTensors& tensors) {
         const Tensor from = tensors.normal(Spec(Dtype::kF32, flat.shape));
         const Tensor to = tensors.zeros(Spec(Dtype::kBf16, flat.shape));
         return on_backend(tensors, [=](auto& backend) { convert(backend, from, to); });
       }});
}

std::int64_t parameters_of(const ModelShape& shape) {
  const std::int64_t E = shape.E, D = shape.D(), N = shape.N, R = shape.R(), W = shape.W;
  const std::int64_t block =
      E + 2 * D * E + D * (W + 1) + (R + 2 * N) * D + D * (R + 1) + D * N + D + E * D;
  return shape.V * E + shape.layers * block + E;
}

}  // namespace

std::vector<OpCase> op_cases(const std::vector<ModelShape>& shapes, Dtype activation,
                             std::int64_t document_length) {
  CaseList list(activation, document_length);
  for (const ModelShape& shape : shapes) list.add_block(shape);
  for (const ModelShape& shape : shapes) list.add_head(shape);
  for (const ModelShape& shape : shapes) list.add_optimizer(parameters_of(shape));
  return list.take();
}

std::vector<ModelShape> recipe_shapes() {
  const auto mambarim = [](std::int64_t rows, std::int64_t length) {
    return ModelShape{.B = rows, .L = length, .E = 768, .V = 32000, .layers = 12};
  };
  const auto mamba7b = [](std::int64_t rows) {
    return ModelShape{.B = rows, .L = 2048, .E = 4096, .V = 50432};
  };
  return {mambarim(32, 2048), mambarim(8, 2048), mambarim(4, 2048),
          mamba7b(8),         mamba7b(4),        mambarim(1, 65536)};
}

}  // namespace jiboia::bench
