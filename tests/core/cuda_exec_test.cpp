#include "core/cuda/cuda_exec.h"

#include <gmock/gmock.h>

#include <numeric>
#include <vector>

#include "core/cuda/check.cuh"
#include "core/event.h"
#include "core/half.h"
#include "core/host_access.h"
#include "core/memory.h"
#include "core/upload.h"
#include "tests/support/gpu.h"

#if JIBOIA_WITH_CUDA
namespace jiboia::test {
namespace {

using testing::AllOf;
using testing::Each;
using testing::HasSubstr;

/// An exec of the test's own, so that what it counts is known.
class ExecCuda : public testing::Test {
 protected:
  void SetUp() override {
    JIBOIA_SKIP_WITHOUT_GPU();
    exec_.emplace(CudaExec(0));
  }
  CudaExec& cuda() { return std::get<CudaExec>(*exec_); }
  static Tensor floats(std::byte* data, std::int64_t count) {
    return {Spec(Dtype::kF32, {count}), data};
  }
  std::vector<float> read(const Tensor& tensor) {
    std::vector<float> values(static_cast<std::size_t>(tensor.size()));
    HostAccess(*exec_).read_as_float(tensor, values);
    return values;
  }

  std::optional<Exec> exec_;
};

TEST_F(ExecCuda, GivesMemoryThatIsZeroAndCountsIt) {
  const std::int64_t before = cuda().allocated_bytes();
  {
    const Buffer buffer = allocate(*exec_, 4000, "a test");
    EXPECT_EQ(cuda().allocated_bytes(), before + 4000);
    EXPECT_THAT(read(floats(buffer.data(), 1000)), Each(0.f));
  }
  EXPECT_EQ(cuda().allocated_bytes(), before);
  EXPECT_EQ(allocate(*exec_, 0, "nothing").data(), nullptr);
}

TEST_F(ExecCuda, OutOfMemorySaysWhatWasAskedAndWhatIsFree) {
  try {
    allocate(*exec_, std::int64_t{1} << 50, "a test's petabyte");
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::kOutOfMemory);
    EXPECT_THAT(error.what(), AllOf(HasSubstr("a test's petabyte needs 1125899906842624 bytes"),
                                    HasSubstr("are free"), HasSubstr("nvidia-smi")));
  }
  EXPECT_NO_THROW(cuda().wait());  // the error does not stick
}

std::string error_of(cudaError_t code, ErrorKind kind) {
  try {
    cuda::check(code, "some_op");
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), kind);
    return error.what();
  }
  return "no error";
}

TEST_F(ExecCuda, AFailedCallSaysWhoWhereWhatAndWhatToDo) {
  EXPECT_NO_THROW(cuda::check(cudaSuccess, "some_op"));
  EXPECT_THAT(error_of(cudaErrorIllegalAddress, ErrorKind::kCuda),
              AllOf(HasSubstr("some_op ("), HasSubstr("cuda_exec_test.cpp:"),
                    HasSubstr("CUDA_LAUNCH_BLOCKING")));
  EXPECT_THAT(error_of(cudaErrorNoKernelImageForDevice, ErrorKind::kCuda),
              HasSubstr("CMAKE_CUDA_ARCHITECTURES"));
  EXPECT_THAT(error_of(cudaErrorMemoryAllocation, ErrorKind::kOutOfMemory),
              AllOf(HasSubstr("cudaErrorMemoryAllocation"), HasSubstr("nvidia-smi")));
}

TEST_F(ExecCuda, ThereIsNoGpuBehindTheLast) {
  try {
    CudaExec(CudaExec::device_count());
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::kCuda);
  }
}

TEST_F(ExecCuda, KnowsItsGpu) {
  EXPECT_FALSE(cuda().gpu().name.empty());
  EXPECT_GE(cuda().gpu().compute_capability, 50);
  EXPECT_GT(cuda().gpu().memory_bytes, 0);
  EXPECT_LE(available_bytes(*exec_), cuda().gpu().memory_bytes);
}

TEST_F(ExecCuda, CopiesAndReadsScalars) {
  std::vector<float> values(100);
  std::iota(values.begin(), values.end(), 1.f);
  const Buffer first = allocate(*exec_, 400, "a test"), second = allocate(*exec_, 400, "a test");
  copy(*exec_, floats(reinterpret_cast<std::byte*>(values.data()), 100), floats(first.data(), 100));
  copy(*exec_, floats(first.data(), 100), floats(second.data(), 100));
  EXPECT_EQ(read(floats(second.data(), 100)), values);
  EXPECT_EQ(read_scalar(*exec_, floats(second.data() + 4 * 41, 1)), 42);
  fill_zero(*exec_, floats(second.data(), 50));
  EXPECT_EQ(read_scalar(*exec_, floats(second.data() + 4 * 49, 1)), 0);
  EXPECT_EQ(read_scalar(*exec_, floats(second.data() + 4 * 50, 1)), 51);
  EXPECT_THROW(copy(*exec_, floats(first.data(), 99), floats(second.data(), 100)), Error);
}

TEST_F(ExecCuda, HostAccessMovesMoreThanOnePiece) {
  // Pieces are 64 MiB.
  const std::int64_t count = (std::int64_t{64} << 18) + 12'345;
  const Buffer buffer = allocate(*exec_, 4 * count, "a test");
  const Tensor tensor = floats(buffer.data(), count);
  HostAccess host(*exec_);
  std::vector<std::int64_t> firsts;
  host.write<float>(tensor, [&](std::int64_t first, std::span<float> piece) {
    firsts.push_back(first);
    for (std::size_t i = 0; i < piece.size(); ++i) {
      piece[i] = static_cast<float>((first + static_cast<std::int64_t>(i)) % 65'537);
    }
  });
  EXPECT_THAT(firsts, testing::ElementsAre(0, std::int64_t{64} << 18));
  std::int64_t next = 0, wrong = 0;
  host.read<float>(tensor, [&](std::span<const float> piece) {
    for (float value : piece) wrong += value != static_cast<float>(next++ % 65'537);
  });
  EXPECT_EQ(next, count);
  EXPECT_EQ(wrong, 0);
}

TEST_F(ExecCuda, ReadsBf16AsFloat) {
  std::vector<std::uint16_t> bits = {bf16_from_float(1.5f), bf16_from_float(-3e30f)};
  const Buffer buffer = allocate(*exec_, 4, "a test");
  copy(*exec_, Tensor(Spec(Dtype::kU16, {2}), bits.data()),
       Tensor(Spec(Dtype::kU16, {2}), buffer.data()));
  EXPECT_THAT(read(Tensor(Spec(Dtype::kBf16, {2}), buffer.data())),
              testing::ElementsAre(1.5f, float_from_bf16(bits[1])));
}

TEST_F(ExecCuda, EventsOrderAndMeasure) {
  Event begin, end;
  begin.record(*exec_);
  const Buffer buffer = allocate(*exec_, 1 << 20, "a test");
  for (int i = 0; i < 10; ++i) fill_zero(*exec_, floats(buffer.data(), 1 << 18));
  end.record(*exec_);
  end.wait();
  EXPECT_GE(end.seconds_since(begin), 0);
  EXPECT_LT(end.seconds_since(begin), 10);
}

TEST_F(ExecCuda, UploadsAreThereForWhatIsAskedForNext) {
  // Large ones take longer than the GPU needs to begin with the copy that follows.
  const std::int64_t count = gpu_is_emulated() ? 4000 : std::int64_t{2} << 20;
  constexpr std::int64_t kRead = 1000;  // the last of an upload
  const auto ring = make_upload_ring(*exec_, 3, 4 * count);
  const Buffer seen = allocate(*exec_, 4 * kRead * 20, "a test");
  cuda().wait();
  for (int i = 0; i < 20; ++i) {
    std::fill_n(reinterpret_cast<float*>(ring->fill()), count, static_cast<float>(i));
    ring->upload(4 * count);
    copy(*exec_, floats(ring->data() + 4 * (count - kRead), kRead),
         floats(seen.data() + 4 * kRead * i, kRead));
  }
  for (int i = 0; i < 20; ++i) {
    EXPECT_THAT(read(floats(seen.data() + 4 * kRead * i, kRead)), Each(static_cast<float>(i)));
  }
}

TEST_F(ExecCuda, UploadsStayForWhatWasAskedForBeforeTheNext) {
  constexpr int kSlots = 3;
  constexpr std::int64_t kCount = 1000;
  // Work that the GPU is busy with, for more than a millisecond, while the host goes on: an upload
  // that did not wait for what reads the one before, or a slot that was filled too early, would be
  // seen long before its turn.
  const std::int64_t busy_bytes = std::int64_t{1} << (gpu_is_emulated() ? 12 : 28);
  const Buffer busy = allocate(*exec_, busy_bytes, "a test");
  const auto ring = make_upload_ring(*exec_, kSlots, 4 * kCount);
  const Buffer seen = allocate(*exec_, 4 * kCount * 20, "a test");
  const std::byte* there = ring->data();
  for (int i = 0; i < 20; ++i) {
    std::fill_n(reinterpret_cast<float*>(ring->fill()), kCount, static_cast<float>(i));
    ring->upload(4 * kCount);
    EXPECT_EQ(ring->data(), there);
    for (int k = 0; k < 16; ++k) fill_zero(*exec_, floats(busy.data(), busy_bytes / 4));
    copy(*exec_, floats(ring->data(), kCount), floats(seen.data() + 4 * kCount * i, kCount));
  }
  for (int i = 0; i < 20; ++i) {
    EXPECT_THAT(read(floats(seen.data() + 4 * kCount * i, kCount)), Each(static_cast<float>(i)))
        << i;
  }
}

}  // namespace
}  // namespace jiboia::test
#endif
