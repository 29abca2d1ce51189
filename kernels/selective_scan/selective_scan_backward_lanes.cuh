#pragma once
#include "kernels/selective_scan/selective_scan_tiles.cuh"

/// How the lanes of a warp share a tile in the fast backward pass.
namespace jiboia::scan_tiles {

inline constexpr float kLn2 = 0.6931471805599453f, kLog2E = 1.4426950408889634f;
inline constexpr unsigned kAllLanes = 0xFFFFFFFF;

/// A lane's part of a tile: 4 channels, 4 states of each. Lane 4 g + q has the channels from 4 g on
/// and the states from 4 q on.
inline constexpr int kLaneChannels = 4, kLaneStates = 4, kStateLanes = 4, kChannelLanes = 8;
using PerChannel = float[kLaneChannels];
using PerState = float[kLaneStates];
using LaneTile = float[kLaneChannels][kLaneStates];

__device__ inline void unpack(const float4& from, float (&to)[4]) {
  to[0] = from.x;
  to[1] = from.y;
  to[2] = from.z;
  to[3] = from.w;
}
__device__ inline float4 pack(const float (&from)[4]) {
  return make_float4(from[0], from[1], from[2], from[3]);
}
__device__ inline void unpack(const uint2& from, float (&to)[4]) {
  cuda::unpack<bf16>(cuda::Vector<bf16, 4>{{from.x, from.y}}, to);
}

/// For each step of a chunk the outer product of one value a channel and one value a state.
/// Method: the channels' values are cut to 11 bits, having been made larger by what that takes off
/// on average, so they are within 2^-10 of themselves and their errors have mean 0. The states'
/// are taken as they are if they have no more bits, as bf16 has not. One infinite value or NaN
/// spoils all steps of the chunk.
class OuterProducts {
 public:
  /// `of_channels` are the values of the lane's channels, `of_states` those of the states 2 g and
  /// 2 g + 1, all of step q.
  __device__ OuterProducts(const float4& of_channels, const float2& of_states)
      : of_states_(of_states) {
    constexpr float kHalfUnit = 1 + 0.72f * 0x1p-11f;  // the mean of 1 / x over [1, 2) is 0.69
    unpack(of_channels, of_channels_);
#pragma unroll
    for (float& value : of_channels_) value *= kHalfUnit;
  }

  /// Those of a step.
  __device__ void get(int step, LaneTile& to) const {
#ifdef __CUDA_ARCH__
    const bool own = threadIdx.x % kStateLanes == static_cast<unsigned>(step);
    const float of_states[2] = {own ? of_states_.x : 0, own ? of_states_.y : 0};
#pragma unroll
    for (int i = 0; i < kLaneChannels; i += 2) {
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        asm("mma.sync.aligned.m16n8k4.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, "
            "{%7, %7, %7, %7};"
            : "=f"(to[i][j]), "=f"(to[i][2 + j]), "=f"(to[i + 1][j]), "=f"(to[i + 1][2 + j])
            : "r"(__float_as_uint(of_channels_[i])), "r"(__float_as_uint(of_channels_[i + 1])),
              "r"(__float_as_uint(of_states[j])), "f"(0.f));
      }
    }
#else
    const int lane = static_cast<int>(threadIdx.x) % 32, g = lane / kStateLanes,
              q = lane % kStateLanes;
    LaneTile products;
    for (int i = 0; i < kLaneChannels; ++i) {
      const float cut = __uint_as_float(__float_as_uint(of_channels_[i]) & 0xFFFFE000U);
      const float of_channel = __shfl_sync(kAllLanes, cut, g * kStateLanes + step);
      for (int j = 0; j < kLaneStates; ++j) {
        const int from = (2 * q + j / 2) * kStateLanes + step;
        products[i][j] =
            of_channel * __shfl_sync(kAllLanes, j % 2 ? of_states_.y : of_states_.x, from);
      }
    }
    std::memcpy(to, products, sizeof products);
#endif
  }

 private:
  PerChannel of_channels_;
  float2 of_states_;
};

/// Sums over the 4 state lanes, of 4 values of each step: state lane `step` gets those of `step`.
/// Method: a product with a matrix of 0 and 1, in which each value is cut to 11 bits, so up to
/// 2^-10 of itself too small. (Shuffles take twice as long.)
class StateSums {
 public:
  /// `is_lane`: whether this is channel lane 2 * step, and the one behind it.
  __device__ void add(const float (&values)[4], [[maybe_unused]] int step,
                      [[maybe_unused]] const float2& is_lane) {
#ifdef __CUDA_ARCH__
    asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
        "{%8, %9}, {%0, %1, %2, %3};"
        : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
        : "r"(__float_as_uint(values[0])), "r"(__float_as_uint(values[2])),
          "r"(__float_as_uint(values[1])), "r"(__float_as_uint(values[3])),
          "r"(__float_as_uint(is_lane.x)), "r"(__float_as_uint(is_lane.y)));
#else
    for (int i = 0; i < 4; ++i) {
      float sum = __uint_as_float(__float_as_uint(values[i]) & 0xFFFFE000U);
      sum += __shfl_xor_sync(kAllLanes, sum, 1);
      sum += __shfl_xor_sync(kAllLanes, sum, 2);
      if (static_cast<int>(threadIdx.x) % kStateLanes == step) sums[i] += sum;
    }
#endif
  }
  float sums[4] = {};
};

}  // namespace jiboia::scan_tiles
