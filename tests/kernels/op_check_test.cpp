#include "kernels/add_rms_norm/add_rms_norm.h"
#include "tests/support/op_check_cuda.h"

#if JIBOIA_WITH_CUDA
namespace jiboia::test {
namespace {

// The check on the GPU must notice every kind of fault that it looks for. An op that is right is
// spoilt in one way, in f32.
enum class Fault {
  kNone,
  kWritesBehindAnOutput,
  kWritesBeforeAGradient,
  kWritesBehindItsScratch,
  kLeavesAnElementOut,
  kOverwritesWhereItShouldAdd,
  kChangesAnInput,
  kReadsWhatItSaysItDoesNot,
  kGivesOtherBitsAgain,
  kGivesOtherBitsAtLaunch3,
  kDependsOnItsScratch,
  kNeedsEveryGradient,
};

float read(CudaExec& gpu, const void* from) {
  float value = 0;
  const Spec one(Dtype::kF32, {1});
  copy(gpu, {one, const_cast<void*>(from)}, {one, &value});
  gpu.wait();
  return value;
}
void write(CudaExec& gpu, void* to, float value) {
  const Spec one(Dtype::kF32, {1});
  copy(gpu, {one, &value}, {one, to});
  gpu.wait();
}
float* element(const Tensor& tensor, std::int64_t i) { return tensor.as<float>() + i; }

template <Fault fault>
struct Faulty : AddRmsNorm {
  static void forward(CpuExec& cpu, const ForwardArgs<Faulty>& args) {
    AddRmsNorm::forward(cpu, {args.in, args.out, args.attrs, args.scratch});
  }
  static void forward(CudaExec& gpu, const ForwardArgs<Faulty>& args) {
    const float before = read(gpu, element(args.out.normed, 1));
    AddRmsNorm::forward(gpu, {args.in, args.out, args.attrs, args.scratch});
    if (fault == Fault::kWritesBehindAnOutput) {
      write(gpu, element(args.out.normed, args.out.normed.size()), 1);
    }
    if (fault == Fault::kLeavesAnElementOut) write(gpu, element(args.out.normed, 1), before);
    if (fault == Fault::kGivesOtherBitsAgain) {
      static float times = 0;
      float* spoilt = element(args.out.normed, 1);
      write(gpu, spoilt, read(gpu, spoilt) + 1e-6f * ++times);
    }
    if (fault == Fault::kGivesOtherBitsAtLaunch3) {
      static int launch = 0;
      float* spoilt = element(args.out.normed, 1);
      if (++launch == 3) write(gpu, spoilt, read(gpu, spoilt) + 1e-6f);
    }
  }
  static void backward(CpuExec& cpu, const BackwardArgs<Faulty>& args) {
    AddRmsNorm::backward(
        cpu, {args.in, args.out, args.attrs, args.grad_out, args.grad_in, args.scratch});
  }
  static void backward(CudaExec& gpu, const BackwardArgs<Faulty>& args) {
    In<Grad> grad_in = args.grad_in;
    if (fault == Fault::kOverwritesWhereItShouldAdd) grad_in.weight.mode = GradMode::kOverwrite;
    const bool clean_scratch = read(gpu, args.scratch.data()) == 0;
    AddRmsNorm::backward(gpu,
                         {args.in, args.out, args.attrs, args.grad_out, grad_in, args.scratch});
    const auto add = [&](const Tensor& grad, float value) {
      if (grad) write(gpu, element(grad, 0), read(gpu, element(grad, 0)) + value);
    };
    if (fault == Fault::kWritesBeforeAGradient && grad_in.residual) {
      write(gpu, element(grad_in.residual, -1), 1);
    }
    if (fault == Fault::kWritesBehindItsScratch) {
      write(gpu, args.scratch.data() + args.scratch.size(), 1);
    }
    if (fault == Fault::kChangesAnInput) write(gpu, element(args.in.residual, 2), 1);
    if (fault == Fault::kReadsWhatItSaysItDoesNot) {
      add(grad_in.weight, 0 * read(gpu, element(args.in.update, 0)));
    }
    if (fault == Fault::kDependsOnItsScratch && clean_scratch) add(grad_in.weight, 1e-6f);
    if (fault == Fault::kNeedsEveryGradient && !grad_in.update) add(grad_in.residual, 1e-6f);
  }
};

template <Fault fault>
std::vector<std::string> failures() {
  using Op = Faulty<fault>;
  const OpCheck<Op> check{.inputs = {.residual = {.shape = {2, 3, 5}, .low = -2, .high = 2},
                                     .update = {.shape = {2, 3, 5}, .low = -1, .high = 1},
                                     .weight = {.shape = {5}, .low = 0.5, .high = 1.5}},
                          .saved_outputs = {"rstd"}};
  return detail::CudaChecker<Op>(check, Dtype::kF32).failures();
}

TEST(OpCheckCuda, NoticesFaults) {
  JIBOIA_SKIP_WITHOUT_GPU();
  if (is_set("JIBOIA_EXACT_BUFFERS")) GTEST_SKIP() << "there are no guard bytes";
  const auto says = [](const std::string& words) {
    return testing::Contains(testing::HasSubstr(words));
  };
  EXPECT_THAT(failures<Fault::kNone>(), testing::IsEmpty());
  EXPECT_THAT(failures<Fault::kWritesBehindAnOutput>(), says("wrote outside normed"));
  EXPECT_THAT(failures<Fault::kWritesBeforeAGradient>(),
              says("wrote outside the gradient of residual"));
  EXPECT_THAT(failures<Fault::kWritesBehindItsScratch>(), says("wrote outside its scratch"));
  EXPECT_THAT(failures<Fault::kLeavesAnElementOut>(), says("normed: element 1 is nan"));
  EXPECT_THAT(failures<Fault::kOverwritesWhereItShouldAdd>(), says("added gradient of weight"));
  EXPECT_THAT(failures<Fault::kChangesAnInput>(), says("residual was changed by backward"));
  EXPECT_THAT(failures<Fault::kReadsWhatItSaysItDoesNot>(), says("gradient of weight: element 0"));
  EXPECT_THAT(failures<Fault::kGivesOtherBitsAgain>(), says("normed has other bits again"));
  if (detail::gpu_launches() > 1) {
    EXPECT_THAT(failures<Fault::kGivesOtherBitsAgain>(), says("launch 2 gave other bits"));
  }
  if (detail::gpu_launches() > 2) {
    EXPECT_THAT(failures<Fault::kGivesOtherBitsAtLaunch3>(), says("launch 3 gave other bits"));
  }
  EXPECT_THAT(failures<Fault::kDependsOnItsScratch>(), says("weight gradient has other bits"));
  EXPECT_THAT(failures<Fault::kNeedsEveryGradient>(),
              says("residual gradient has other bits without update's gradient"));
}

TEST(OpCheckCuda, NamesTheFirstLaunchWithOtherBits) {
  JIBOIA_SKIP_WITHOUT_GPU();
  // Bytes of which some are left over behind the last 16, and more than all threads take at once.
  for (std::int64_t size : {1, 15, 16, 37, 4096, 5'000'003}) {
    for (std::int64_t spoilt : {std::int64_t{0}, size / 2, size - 1}) {
      const Spec spec(Dtype::kU8, {size}), one(Dtype::kU8, {1});
      TestTensor empty(Spec(Dtype::kU8, {0})), same(spec), changing(spec), later(spec);
      CudaPlace place;
      for (TestTensor* tensor : {&empty, &same}) place.put(*tensor);
      const Tensor on_gpu = place.put(changing), later_on_gpu = place.put(later);
      int launch = 0;
      std::vector<std::string> failures;
      const auto pass = [&] {
        ++launch;
        // As bits of the first launch come again at the fifth, what was noted has to stay.
        unsigned char values[] = {0x80, 0x80, 0x81, 0x81, 0x80}, last = launch == 4 ? 1 : 0;
        copy(gpu(), {one, values + launch - 1}, {one, on_gpu.as<unsigned char>() + spoilt});
        copy(gpu(), {one, &last}, {one, later_on_gpu.as<unsigned char>() + spoilt});
        gpu().wait();
      };
      place.run(pass, 5, failures);
      EXPECT_EQ(launch, 5);
      EXPECT_THAT(failures, testing::ElementsAre("launch 3 gave other bits in tensor 3 of 4"))
          << "of " << size << " bytes, with byte " << spoilt << " changed";
      EXPECT_EQ(changing.tensor().as<unsigned char>()[spoilt], 0x80) << "is not the first launch's";
      EXPECT_TRUE(same.same_bits(TestTensor(spec)));
    }
  }
}

TEST(OpCheckCuda, TakesTheSameBitsAgainForGood) {
  JIBOIA_SKIP_WITHOUT_GPU();
  TestTensor tensor(Spec(Dtype::kF32, {100'001}));
  tensor.fill(std::numeric_limits<double>::quiet_NaN());
  const TestTensor before = tensor;
  CudaPlace place;
  place.put(tensor);
  std::vector<std::string> failures;
  place.run([] {}, 4, failures);
  EXPECT_THAT(failures, testing::IsEmpty());
  EXPECT_TRUE(tensor.same_bits(before));
  place.run([] {}, 2, failures);  // with nothing put
  EXPECT_THAT(failures, testing::IsEmpty());
}

// At any address, and no byte too many.
TEST(OpCheckCuda, ComparesUnalignedMemory) {
  JIBOIA_SKIP_WITHOUT_GPU();
  constexpr std::int64_t kBytes = 64;
  std::vector<std::byte> left(kBytes), right(kBytes);
  for (std::int64_t offset : {0, 1, 8}) {
    for (std::int64_t spoilt = 0; spoilt < kBytes; ++spoilt) {
      right.assign(kBytes, std::byte{0});
      right[spoilt] = std::byte{1};
      const OnGpu gpu_left(left), gpu_right(right);
      const std::int64_t bytes = kBytes - 10 - offset;
      std::vector<Compared> pairs{{gpu_left.data() + offset, gpu_right.data() + offset, bytes}};
      std::vector<std::uint32_t> first{7};
      const OnGpu gpu_pairs(pairs);
      const OnGpu gpu_first(first);
      for (std::uint32_t launch : {8, 5, 6}) {
        note_differences(gpu(), gpu_pairs.data(), 1, bytes, launch, gpu_first.data());
      }
      gpu_first.fetch();
      const bool within = spoilt >= offset && spoilt < offset + bytes;
      EXPECT_EQ(first[0], within ? 5U : 7U) << "byte " << spoilt << " from " << offset;
    }
  }
}

}  // namespace
}  // namespace jiboia::test
#else
namespace jiboia::test {
TEST(OpCheckCuda, NoticesFaults) { JIBOIA_SKIP_WITHOUT_GPU(); }
}  // namespace jiboia::test
#endif
