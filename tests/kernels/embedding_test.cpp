#include "kernels/embedding/embedding.h"

#include "tests/support/op_check.h"
#include "tests/support/op_run.h"

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

TEST(EmbeddingCuda, PassesOpCheck) {
  check_op_cuda(check_of(1, 1, 1, 1));
  check_op_cuda(check_of(2, 37, 11, 5));
  check_op_cuda(check_of(3, 70, 5, 130), PlantErrors::kYes);
  check_op_cuda(check_of(1, 9, 300, 516));
}

OpCheck<Embedding> check_of_tokens(const std::vector<std::int32_t>& tokens, std::int64_t V,
                                   std::int64_t E) {
  auto check = check_of(1, static_cast<std::int64_t>(tokens.size()), V, E);
  check.inputs.tokens.integers = tokens;
  return check;
}

TEST(EmbeddingCuda, SumsRunsThatEndAnywhere) {
  // Sorted positions are summed in pieces of 64: runs that end at, before and behind their ends.
  for (std::int64_t first : {1, 63, 64, 65, 127, 128, 129, 700}) {
    for (std::int64_t second : {1, 63, 64, 65, 128}) {
      std::vector<std::int32_t> tokens;
      for (std::int64_t i = 0; i < first + second + 3; ++i) {
        tokens.push_back(i < first ? 4 : i < first + second ? 2 : 7);
      }
      for (std::int64_t E : {1, 8}) check_op_cuda(check_of_tokens(tokens, 9, E));
    }
  }
}

TEST(EmbeddingCuda, SumsFrequentTokens) {
  // As in text: token k about 1 / (k + 1) as often as the first.
  const Philox random(3, RandomPurpose::kTest, 0);
  std::vector<std::int32_t> tokens;
  for (std::uint64_t i = 0; i < 4001; ++i) {
    tokens.push_back(static_cast<std::int32_t>(std::pow(200.0, random.uniform(i))) - 1);
  }
  check_op_cuda(check_of_tokens(tokens, 200, 12));
  check_op_cuda(check_of_tokens(std::vector<std::int32_t>(2049, 1), 3, 5));
}

TEST(EmbeddingCuda, NotANumberStaysInItsRow) {
  JIBOIA_SKIP_WITHOUT_GPU();
  for (std::int64_t E : {3, 4}) {
    OpRun<Embedding> run(check_of_tokens({0, 1, 2, 1, 0}, 3, E));
    run.in.weight.set(E, std::nan(""));
    run.forward_cuda();
    run.grad_out.x = random_like(run.out.x, 1);
    run.grad_out.x.set(2 * E, std::nan(""));
    run.backward_cuda();
    for (std::int64_t i = 0; i < run.out.x.size(); ++i) {
      const bool of_token_1 = i / E == 1 || i / E == 3;
      EXPECT_EQ(std::isnan(run.out.x.get(i)), of_token_1 && i % E == 0);
    }
    for (std::int64_t i = 0; i < 3 * E; ++i) {
      EXPECT_EQ(std::isnan(run.grad_in.weight.get(i)), i == 2 * E);
    }
  }
}

}  // namespace
}  // namespace jiboia::test
