#pragma once
#include <gtest/gtest.h>

#include <cstring>
#include <span>
#include <utility>
#include <vector>

#include "train/model/model_config.h"
#include "train/optim/parameter_store.h"

namespace jiboia {

/// A few of a model's parameters, of odd sizes: what files and checkpoints see of a model.
inline std::vector<ParameterSpec> tiny_parameters() {
  return {
      {"backbone.embeddings.weight", {29, 23}, {29, 23}, {}, ParameterRole::kMatrix},
      {"backbone.layers.0.mixer.conv1d.weight", {46, 4}, {46, 1, 4}, {}, ParameterRole::kFilter},
      {"backbone.layers.0.mixer.A_log", {46, 5}, {46, 5}, {}, ParameterRole::kOther},
      {"backbone.layers.0.mixer.D", {46}, {46}, {}, ParameterRole::kOther},
      {"backbone.norm_f.weight", {23}, {23}, {}, ParameterRole::kOther}};
}

inline ModelConfig tiny_store_config() {
  return resolved({.vocab_size = 29, .hidden_size = 23, .num_hidden_layers = 1, .state_size = 5});
}

/// Where the tests' stores are.
inline Exec& test_exec() {
  static Exec exec = CpuExec(1);
  return exec;
}

/// A store whose values and moments are told apart by `seed`, no two of them equal.
inline ParameterStore filled_store(std::vector<ParameterSpec> specs, int seed,
                                   Dtype dtype = Dtype::kF32) {
  ParameterStore store(test_exec(), std::move(specs), dtype, StoreContents::kValuesAndTraining);
  visit_float(dtype, [&]<class T>() {
    double next = seed + 1.0 / 3;  // not exact in either type
    for (std::size_t i = 0; i < store.count(); ++i)
      for (const Tensor& tensor : {store.value(i), store.exp_avg(i), store.exp_avg_sq(i)})
        for (T& element : std::span(tensor.as<T>(), static_cast<std::size_t>(tensor.size())))
          element = static_cast<T>(next += 0.001);
  });
  return store;
}
inline ParameterStore tiny_store(int seed, Dtype dtype = Dtype::kF32) {
  return filled_store(tiny_parameters(), seed, dtype);
}

inline bool equal_bits(const Tensor& a, const Tensor& b) {
  return a.dtype == b.dtype && a.bytes() == b.bytes() &&
         std::memcmp(a.data, b.data, static_cast<std::size_t>(a.bytes())) == 0;
}

/// Whether values and moments are the same bits.
inline bool equal_bits(const ParameterStore& a, const ParameterStore& b) {
  return equal_bits(a.flat_values(), b.flat_values()) &&
         equal_bits(a.flat_exp_avg(), b.flat_exp_avg()) &&
         equal_bits(a.flat_exp_avg_sq(), b.flat_exp_avg_sq());
}

}  // namespace jiboia
