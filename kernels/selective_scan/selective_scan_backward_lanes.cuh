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

}  // namespace jiboia::scan_tiles
