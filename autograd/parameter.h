#pragma once
#include <cstddef>
#include <cstdint>

namespace jiboia {

/// A trainable tensor's place in its model's list of parameters.
enum class ParameterId : std::int32_t {};

constexpr std::size_t index(ParameterId id) { return static_cast<std::size_t>(id); }

}  // namespace jiboia
