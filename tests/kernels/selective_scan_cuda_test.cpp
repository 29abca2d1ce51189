#include "tests/kernels/selective_scan_cases.h"

namespace jiboia::test {
namespace {

constexpr std::int64_t kChunk = Scan::kChunk;
constexpr Dtype kDtypes[] = {Dtype::kF32, Dtype::kBf16};

TEST(SelectiveScanCuda, PassesOpCheckAtManyLengths) {
  JIBOIA_SKIP_WITHOUT_GPU();
  for (std::int64_t L :
       cases<std::int64_t>({1, 3, kChunk, kChunk + 1}, {2, 8, 9, kChunk - 1, 45})) {
    SCOPED_TRACE(L);
    check_op_cuda(scan_check(2, L, 3, 5));
  }
  check_op_cuda(scan_check(1, 2049, 2, 3));
}

TEST(SelectiveScanCuda, PassesOpCheckAtManySizes) {
  JIBOIA_SKIP_WITHOUT_GPU();
  using Sizes = std::array<std::int64_t, 4>;
  for (const auto& [B, L, D, N] : cases<Sizes>(
           {{1, 1, 1, 1}, {3, 18, 17, 16}, {2, 17, 33, 17}, {1, 18, 2, 257}},
           {{1, 5, 1, 16}, {2, 17, 32, 4}, {1, 20, 65, 5}, {2, 34, 40, 64}, {1, 3, 130, 32}})) {
    SCOPED_TRACE(fmt::format("{} {} {} {}", B, L, D, N));
    check_op_cuda(scan_check(B, L, D, N));
  }
}

TEST(SelectiveScanCuda, PlantedErrorsAreCaught) {
  auto check = scan_check(2, kChunk + 2, 5, 3);
  check.attrs.final_state = FinalState::kReturn;
  check_op_cuda(check, PlantErrors::kYes);
}

TEST(SelectiveScanCuda, TakesSlicesOfColumns) {
  JIBOIA_SKIP_WITHOUT_GPU();
  for (std::int64_t N : {5, 19}) {
    auto check = scan_check(2, 19, 37, N);
    for (TestInput* input :
         {&check.inputs.u, &check.inputs.dt, &check.inputs.b, &check.inputs.c, &check.inputs.z}) {
      input->columns_before = 3;
      input->columns_after = 2;
    }
    check_op_cuda(check);
  }
}

TEST(SelectiveScanCuda, CarriesStatesInAndOut) {
  JIBOIA_SKIP_WITHOUT_GPU();
  const std::int64_t sizes[][4] = {
      {2, kChunk + 5, 18, 5}, {1, 1, 18, 16}, {2, 2 * kChunk, 35, 20}, {1, kChunk, 3, 1}};
  for (const auto& [B, L, D, N] : sizes) {
    SCOPED_TRACE(fmt::format("{} {} {} {}", B, L, D, N));
    auto check = scan_check(B, L, D, N);
    check.attrs.final_state = FinalState::kReturn;
    check.inputs.initial_state = {.shape = {B, N, D}, .low = -2, .high = 2, .constant = true};
    check_op_cuda(check);
  }
}

TEST(SelectiveScanCuda, ForgetsAtDocumentStarts) {
  JIBOIA_SKIP_WITHOUT_GPU();
  for (const Starts& starts : cases<Starts>({{}, {kChunk, kChunk + 1, 30, 39}},
                                            {{1}, {5, 6, 7, 8}, {kChunk - 1, kChunk}})) {
    for (std::int64_t N : {3, 18}) {
      auto check = scan_check(2, 40, 5, N);
      pack_documents(check, starts);
      check.inputs.initial_state = {.shape = {2, N, 5}, .low = -2, .high = 2, .constant = true};
      check_op_cuda(check);
    }
  }
}

TEST(SelectiveScanCuda, PackedDocumentsEqualSeparateOnes) {
  JIBOIA_SKIP_WITHOUT_GPU();
  const std::vector<std::int32_t> starts = {0, 7, kChunk, 33, 40};
  for (Dtype dtype : kDtypes) {
    auto check = scan_check(2, 40, 35, 6);
    pack_documents(check, {starts.begin(), starts.end() - 1});
    OpRun<Scan> packed(check, dtype);
    packed.forward_cuda();
    packed.grad_out.y = random_like(packed.out.y, 1);
    packed.backward_cuda();
    for (std::size_t i = 0; i + 1 < starts.size(); ++i) {
      SCOPED_TRACE(fmt::format("{} {}", to_string(dtype), starts[i]));
      const std::int64_t begin = starts[i], end = starts[i + 1];
      OpRun<Scan> separate = part_of(packed, begin, end);
      separate.forward_cuda();
      separate.grad_out.y = steps_of(packed.grad_out.y, begin, end);
      separate.backward_cuda();
      EXPECT_TRUE(steps_of(packed.out.y, begin, end).same_bits(separate.out.y));
      EXPECT_TRUE(steps_of(packed.grad_in.u, begin, end).same_bits(separate.grad_in.u));
      EXPECT_TRUE(steps_of(packed.grad_in.dt, begin, end).same_bits(separate.grad_in.dt));
      EXPECT_TRUE(steps_of(packed.grad_in.z, begin, end).same_bits(separate.grad_in.z));
      EXPECT_TRUE(steps_of(packed.grad_in.b, begin, end).same_bits(separate.grad_in.b));
      EXPECT_TRUE(steps_of(packed.grad_in.c, begin, end).same_bits(separate.grad_in.c));
    }
  }
}

TEST(SelectiveScanCuda, DocumentsAreForgottenHoweverSlowlyTheirStateDecays) {
  JIBOIA_SKIP_WITHOUT_GPU();
  auto check = scan_check(1, 4, 3, 2);
  pack_documents(check, {2});
  OpRun<Scan> run(check);
  run.in.a_log.fill(-200);  // exp(a_log) is 0: without a document start nothing decays at all
  run.forward_cuda();
  OpRun<Scan> second = part_of(run, 2, 4);
  second.forward_cuda();
  EXPECT_TRUE(steps_of(run.out.y, 2, 4).same_bits(second.out.y));
}

TEST(SelectiveScanCuda, SplitSequenceEqualsTheWhole) {
  JIBOIA_SKIP_WITHOUT_GPU();
  for (Dtype dtype : kDtypes) {
    auto check = scan_check(2, 45, 37, 18);
    check.attrs.final_state = FinalState::kReturn;
    OpRun<Scan> whole(check, dtype);
    whole.forward_cuda();
    for (std::int64_t split : {std::int64_t{1}, kChunk, std::int64_t{30}}) {
      SCOPED_TRACE(fmt::format("{} {}", to_string(dtype), split));
      OpRun<Scan> first = part_of(whole, 0, split), second = part_of(whole, split, 45);
      first.forward_cuda();
      second.in.initial_state = first.out.final_state;
      second.forward_cuda();
      EXPECT_TRUE(steps_of(whole.out.y, 0, split).same_bits(first.out.y));
      EXPECT_TRUE(steps_of(whole.out.y, split, 45).same_bits(second.out.y));
      EXPECT_TRUE(whole.out.final_state.same_bits(second.out.final_state));
    }
  }
}

TEST(SelectiveScanCuda, TokenByTokenEqualsTheWhole) {
  JIBOIA_SKIP_WITHOUT_GPU();
  auto check = scan_check(1, 20, 17, 16);
  check.attrs.final_state = FinalState::kReturn;
  OpRun<Scan> whole(check);
  whole.forward_cuda();
  TestTensor state;
  for (std::int64_t t = 0; t < 20; ++t) {
    OpRun<Scan> token = part_of(whole, t, t + 1);
    token.in.initial_state = state;
    token.forward_cuda();
    EXPECT_TRUE(steps_of(whole.out.y, t, t + 1).same_bits(token.out.y)) << t;
    state = token.out.final_state;
  }
}

/// Batch row `row` of a (B, ...) tensor.
TestTensor batch_row(const TestTensor& all, std::int64_t row) {
  if (!all) return {};
  TestTensor one(Spec(all.spec().dtype, all.spec().shape.with(0, 1)));
  for (std::int64_t i = 0; i < one.size(); ++i) one.set(i, all.get(row * one.size() + i));
  return one;
}

// Many rows are cut into wider blocks than few.
TEST(SelectiveScanCuda, RowsDoNotDependOnTheirNumber) {
  JIBOIA_SKIP_WITHOUT_GPU();
  constexpr std::int64_t B = 256, L = 21, D = 75;
  for (std::int64_t N : {5, 18}) {
    auto check = scan_check(B, L, D, N);
    check.attrs.final_state = FinalState::kReturn;
    check.inputs.initial_state = {.shape = {B, N, D}, .low = -2, .high = 2, .constant = true};
    pack_documents(check, {6, kChunk});
    for (Dtype dtype : kDtypes) {
      OpRun<Scan> all(check, dtype);
      all.forward_cuda();
      for (std::int64_t row : {std::int64_t{0}, std::int64_t{100}, B - 1}) {
        SCOPED_TRACE(fmt::format("{} {} {}", N, to_string(dtype), row));
        OpRun<Scan> one = all;
        for (TestTensor Scan::In<TestTensor>::*member :
             {&Scan::In<TestTensor>::u, &Scan::In<TestTensor>::dt, &Scan::In<TestTensor>::b,
              &Scan::In<TestTensor>::c, &Scan::In<TestTensor>::z,
              &Scan::In<TestTensor>::document_start, &Scan::In<TestTensor>::initial_state}) {
          one.in.*member = batch_row(all.in.*member, row);
        }
        one.forward_cuda();
        EXPECT_TRUE(batch_row(all.out.y, row).same_bits(one.out.y));
        EXPECT_TRUE(batch_row(all.out.states, row).same_bits(one.out.states));
        EXPECT_TRUE(batch_row(all.out.final_state, row).same_bits(one.out.final_state));
      }
    }
  }
}

TEST(SelectiveScanCuda, TakesNoBatchRows) {
  JIBOIA_SKIP_WITHOUT_GPU();
  OpRun<Scan> run(scan_check(1, 3, 4, 2));
  for (TestTensor* tensor : {&run.in.u, &run.in.dt, &run.in.b, &run.in.c, &run.in.z}) {
    *tensor = TestTensor(Spec(Dtype::kF32, tensor->spec().shape.with(0, 0)));
  }
  run.forward_cuda();
  run.backward_cuda();
  EXPECT_EQ(run.grad_in.a_log.largest(), 0);
  EXPECT_EQ(run.grad_in.d_skip.largest(), 0);
  EXPECT_EQ(run.grad_in.dt_bias.largest(), 0);
}

#if JIBOIA_WITH_CUDA
TEST(SelectiveScanCuda, ScratchFitsBesideALargeModel) {
  JIBOIA_SKIP_WITHOUT_GPU();
  constexpr std::int64_t B = 32, L = 2048, D = 1536, N = 16;
  Scan::In<Spec> in{};
  in.u = in.dt = in.z = Spec(Dtype::kBf16, {B, L, D});
  in.b = in.c = Spec(Dtype::kBf16, {B, L, N});
  in.a_log = Spec(Dtype::kF32, {D, N});
  EXPECT_LE(scratch_bytes<Scan>(gpu(), Pass::kBackward, in, {}), 450e6);
  EXPECT_EQ(scratch_bytes<Scan>(gpu(), Pass::kForward, in, {}), 0);
}
#endif

}  // namespace
}  // namespace jiboia::test
