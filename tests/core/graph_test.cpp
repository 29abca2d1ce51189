#include "core/graph.h"

#include <gmock/gmock.h>

#include <algorithm>
#include <vector>

#include "core/event.h"
#include "core/host_access.h"
#include "core/memory.h"
#include "core/upload.h"
#include "tests/support/gpu.h"

namespace jiboia::test {
namespace {

using testing::Each;
using testing::HasSubstr;

TEST(Graph, IsTheWorkItselfOnTheCpu) {
  Exec exec = CpuExec(1);
  Graph graph("a test", GraphUse::kAuto);
  int calls = 0;
  for (int i = 0; i < 5; ++i) graph.run(exec, [&] { ++calls; });
  EXPECT_EQ(calls, 5);
}

#if JIBOIA_WITH_CUDA

/// Rows of memory that work moves uploads through.
class GraphCuda : public testing::Test {
 protected:
  static constexpr std::int64_t kCount = 1000;

  void SetUp() override {
    JIBOIA_SKIP_WITHOUT_GPU();
    exec_.emplace(CudaExec(0));
    memory_ = allocate(*exec_, 4 * kCount * kRuns, "a test");
    ring_ = make_upload_ring(*exec_, 2, 4 * kCount);
  }
  static Tensor floats(std::byte* data) { return {Spec(Dtype::kF32, {kCount}), data}; }
  Tensor row(int i) const { return floats(memory_.data() + 4 * kCount * i); }
  std::vector<float> read(const Tensor& tensor) {
    std::vector<float> values(kCount);
    HostAccess(*exec_).read_as_float(tensor, values);
    return values;
  }
  void upload(float value) {
    std::fill_n(reinterpret_cast<float*>(ring_->fill()), kCount, value);
    ring_->upload(4 * kCount);
  }
  /// Moves all rows on by one and puts the upload first: every run matters for what is there.
  void shift() {
    ++calls_;
    for (int i = kRuns - 1; i > 0; --i) copy(*exec_, row(i - 1), row(i));
    copy(*exec_, floats(ring_->data()), row(0));
  }
  void expect_shifted(int runs) {
    for (int i = 0; i < runs; ++i) {
      EXPECT_THAT(read(row(i)), Each(static_cast<float>(runs - 1 - i))) << "row " << i;
    }
  }

  static constexpr int kRuns = 8;
  std::optional<Exec> exec_;
  Buffer memory_;
  std::unique_ptr<UploadRing> ring_;
  int calls_ = 0;
};

TEST_F(GraphCuda, DoesTheWorkInOrderAndCallsItTwice) {
  Graph graph("a test", GraphUse::kAuto);
  for (int i = 0; i < kRuns; ++i) {
    upload(static_cast<float>(i));
    graph.run(*exec_, [&] { shift(); });
  }
  expect_shifted(kRuns);
  EXPECT_EQ(calls_, 2);
}

TEST_F(GraphCuda, IsTheWorkItselfWhenItMayNotRecord) {
  Graph graph("a test", GraphUse::kNever);
  for (int i = 0; i < kRuns; ++i) {
    upload(static_cast<float>(i));
    graph.run(*exec_, [&] { shift(); });
  }
  expect_shifted(kRuns);
  EXPECT_EQ(calls_, kRuns);
}

TEST_F(GraphCuda, RecordsAnewWhenToldToForget) {
  Graph graph("a test", GraphUse::kAuto);
  for (int target : {2, 5}) {
    fill_zero(*exec_, Tensor(Spec(Dtype::kF32, {kCount * kRuns}), memory_.data()));
    for (int i = 1; i <= 4; ++i) {
      upload(static_cast<float>(10 * target + i));
      graph.run(*exec_, [&] { copy(*exec_, floats(ring_->data()), row(target)); });
    }
    for (int i = 0; i < kRuns; ++i) {
      EXPECT_THAT(read(row(i)), Each(i == target ? static_cast<float>(10 * target + 4) : 0));
    }
    graph.forget();
  }
}

TEST_F(GraphCuda, KeepsTheAddressesThatItRecorded) {
  // What the comment in the header warns of, so that a test of whole steps means something.
  Graph graph("a test", GraphUse::kAuto);
  for (int i = 0; i < 4; ++i) {
    upload(static_cast<float>(i + 1));
    graph.run(*exec_, [&, i] { copy(*exec_, floats(ring_->data()), row(i)); });
  }
  EXPECT_THAT(read(row(0)), Each(1.F));
  EXPECT_THAT(read(row(1)), Each(4.F));
  EXPECT_THAT(read(row(3)), Each(0.F));
}

TEST_F(GraphCuda, WorkThatFailsWhileItIsRecordedLeavesTheStreamUsable) {
  Graph graph("a test", GraphUse::kAuto);
  for (int i = 0; i < kRuns; ++i) {
    upload(static_cast<float>(i));
    if (i == 1) {
      EXPECT_THROW(graph.run(*exec_, [&] { fail(ErrorKind::kData, "a test's own"); }), Error);
    }
    graph.run(*exec_, [&] { shift(); });
  }
  expect_shifted(kRuns);
}

/// Work that must not be recorded: refused as the GPU's error, and the exec goes on.
void expect_refused(Exec& exec, const std::function<void()>& work) {
  Graph graph("a test's graph", GraphUse::kAuto);
  graph.run(exec, work);
  try {
    graph.run(exec, work);
    ADD_FAILURE() << "nothing was refused";
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::kCuda);
    EXPECT_THAT(error.what(), HasSubstr("apture"));
  }
  EXPECT_NO_THROW(wait(exec));
}

TEST_F(GraphCuda, RefusesWorkThatWaitsOrTakesMemory) {
  expect_refused(*exec_, [&] { wait(*exec_); });
  expect_refused(*exec_, [&] {
    copy(*exec_, floats(ring_->data()), row(0));
    wait(*exec_);
    copy(*exec_, floats(ring_->data()), row(1));
  });
  expect_refused(*exec_, [&] { allocate(*exec_, 100, "a test"); });
  expect_refused(*exec_, [&] { upload(4); });  // the GPU waits for what is not recorded
  upload(3);
  copy(*exec_, floats(ring_->data()), row(2));
  EXPECT_THAT(read(row(2)), Each(3.F));
}

TEST_F(GraphCuda, MayBeDestroyedWhileItRuns) {
  for (int i = 0; i < kRuns; ++i) {
    Graph graph("a test", GraphUse::kAuto);
    upload(static_cast<float>(i));
    fill_zero(*exec_, row(i));
    for (int k = 0; k < 3; ++k) {
      graph.run(*exec_, [&] { copy(*exec_, floats(ring_->data()), row(i)); });
    }
  }
  for (int i = 0; i < kRuns; ++i) EXPECT_THAT(read(row(i)), Each(static_cast<float>(i)));
}

#endif

}  // namespace
}  // namespace jiboia::test
