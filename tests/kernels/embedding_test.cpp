#include "kernels/embedding/embedding.h"

#include "tests/support/op_check.h"

namespace jiboia::test {
namespace {

void plain_embedding(const Embedding::In<>& in, const NoAttrs&, const Embedding::Out<>& out) {
  const std::int64_t E = in.weight.columns();
  for (std::int64_t i = 0; i < in.tokens.size(); ++i) {
    for (std::int64_t e = 0; e < E; ++e) {
      out.x.as<double>()[i * E + e] =
          in.weight.as<double>()[in.tokens.as<std::int32_t>()[i] * E + e];
    }
  }
}

OpCheck<Embedding> check_of(std::int64_t B, std::int64_t L, std::int64_t V, std::int64_t E) {
  std::vector<std::int32_t> tokens;
  for (std::int64_t i = 0; i < B * L; ++i) tokens.push_back(static_cast<std::int32_t>(i * i % V));
  return {.inputs = {.tokens = {.shape = {B, L}, .integers = tokens, .free_dimensions = {0, 1}},
                     .weight = {.shape = {V, E}, .low = -1, .high = 1, .free_dimensions = {0, 1}}},
          .reference = plain_embedding};
}

TEST(Embedding, PassesOpCheck) {
  check_op(check_of(1, 1, 1, 1));
  check_op(check_of(2, 37, 11, 5));
  check_op(check_of(3, 70, 5, 130), PlantErrors::kYes);
}

}  // namespace
}  // namespace jiboia::test
