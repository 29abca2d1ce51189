#pragma once
#include <cstddef>
#include <span>
#include <type_traits>
#include <utility>

namespace jiboia {

/// Stands for a value of type T, and for one of no other type.
template <class T>
struct ValueOf {
  template <class U>
  requires std::is_same_v<U, T>
  operator U() const;
};

template <class Struct, class T, std::size_t... i>
constexpr bool can_hold(std::index_sequence<i...>) {
  return requires { Struct{((void)i, ValueOf<T>())...}; };
}

/// Whether Struct is so many members of type T and nothing else.
template <class Struct, class T>
inline constexpr bool kIsMadeOf =
    std::is_aggregate_v<Struct> && sizeof(Struct) % sizeof(T) == 0 &&
    can_hold<Struct, T>(std::make_index_sequence<sizeof(Struct) / sizeof(T)>());

/// Views a plain struct whose members all have type T as an array of them, in declaration order.
/// `fields<Tensor>(in)` lets generic code walk an op's inputs without naming them.
template <class T, class Struct>
auto fields(Struct& s) {
  static_assert(kIsMadeOf<std::remove_cv_t<Struct>, std::remove_cv_t<T>>);
  using Element = std::conditional_t<std::is_const_v<Struct>, const T, T>;
  return std::span<Element, sizeof(Struct) / sizeof(T)>(reinterpret_cast<Element*>(&s),
                                                        sizeof(Struct) / sizeof(T));
}

/// Calls `transform` on every member of `from` and returns the results as a To (the same struct
/// template over another member type).
template <class ToMember, class To, class FromMember, class From, class Transform>
To map_fields(const From& from, Transform transform) {
  To to{};
  auto source = fields<FromMember>(from);
  auto target = fields<ToMember>(to);
  static_assert(source.size() == target.size());
  for (std::size_t i = 0; i < source.size(); ++i) target[i] = transform(source[i]);
  return to;
}

}  // namespace jiboia
