#include "train/model/initialise.h"

#include <algorithm>
#include <cmath>

#include "core/host_access.h"
#include "core/rng.h"
#include "kernels/cpu_tiles.h"

namespace jiboia {
namespace {

constexpr std::int64_t kGrain = 1 << 14;  // elements that a thread draws at a time

double draw(const Initializer& how, const Philox& random, std::int64_t i, std::int64_t columns) {
  const auto counter = static_cast<std::uint64_t>(i);
  switch (how.kind) {
    case Initializer::Kind::kConstant: return how.a;
    case Initializer::Kind::kUniform: return how.a * (2 * random.uniform(counter) - 1);
    case Initializer::Kind::kNormal: return how.a * random.normal(counter);
    case Initializer::Kind::kLogStates: return std::log(static_cast<double>(i % columns + 1));
    case Initializer::Kind::kTimeStep: {
      const double spread = std::log(how.b) - std::log(how.a);
      const double dt =
          std::max(std::exp(random.uniform(counter) * spread + std::log(how.a)), how.c);
      return dt + std::log(-std::expm1(-dt));  // the inverse of softplus
    }
  }
  return 0;
}

}  // namespace

void initialise(ParameterStore& parameters, std::uint64_t seed, int threads) {
  CpuExec cpu(threads);
  HostAccess host(parameters.exec());
  for (std::size_t p = 0; p < parameters.count(); ++p) {
    const Tensor value = parameters.value(p);
    const Initializer& how = parameters.spec(p).initializer;
    const Philox random(seed, RandomPurpose::kInitialisation, static_cast<std::uint32_t>(p));
    visit_float(value.dtype, [&]<class T>() {
      host.write<T>(value, [&](std::int64_t first, std::span<T> to) {
        const auto size = static_cast<std::int64_t>(to.size());
        parallel_ranges(cpu, size, kGrain, [&](std::int64_t begin, std::int64_t end) {
          for (std::int64_t i = begin; i < end; ++i) {
            to[static_cast<std::size_t>(i)] =
                static_cast<T>(draw(how, random, first + i, value.columns()));
          }
        });
      });
    });
  }
  parameters.round_values();
}

}  // namespace jiboia
