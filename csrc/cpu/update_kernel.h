// The combined gradient goes straight into an optimizer's update: one read of every row, and one read and one write of
// the parameter and of its state.
#pragma once

#include "../kernels/update.h"
#include "combine_kernel.h"

namespace mtlfast {
namespace {

// Columns of one tile. Gradients and state are read in turns, so that no more streams than in combine_kernel.h are read
// at once, and the sums stay in the first cache.
constexpr int kUpdateColumns = 1024;

struct VectorMath {
  typedef Vec Number;
  static Vec root(Vec value) { return square_root(value); }
  static Vec larger(Vec a, Vec b) { return greater(a, b); }
};

template <class T, bool kFirst>
inline void sum_tile(const T* const* rows, const double* weights, int num_rows, int64_t column,
                     int64_t columns, double* sums) {
  T* const nowhere = nullptr;
  switch (num_rows) {
    case 1:
      return combine_tile<T, 1, kFirst, false, false>(rows, weights, nowhere, column, columns,
                                                      sums);
    case 2:
      return combine_tile<T, 2, kFirst, false, false>(rows, weights, nowhere, column, columns,
                                                      sums);
    case 3:
      return combine_tile<T, 3, kFirst, false, false>(rows, weights, nowhere, column, columns,
                                                      sums);
    default:
      return combine_tile<T, 4, kFirst, false, false>(rows, weights, nowhere, column, columns,
                                                      sums);
  }
}

// sums = Σ weights[k] · rows[k]; columns is a multiple of kCombineStep.
template <class T>
inline void sum_rows(const T* const* rows, const double* weights, int num_rows, int64_t column,
                     int64_t columns, double* sums) {
  if (num_rows == 0) {
    for (int64_t lane = 0; lane < columns; lane += kLanes) store(sums + lane, Vec{});
    return;
  }
  sum_tile<T, true>(rows, weights, num_rows < kCombineRows ? num_rows : kCombineRows, column,
                    columns, sums);
  for (int k = kCombineRows; k < num_rows; k += kCombineRows)
    sum_tile<T, false>(rows + k, weights + k,
                       num_rows - k < kCombineRows ? num_rows - k : kCombineRows, column, columns,
                       sums);
}

template <class T, UpdateRule kRule>
void update_rows(const UpdateFactors<double>& factors, const void* const* untyped_rows,
                 const double* weights, int num_rows, void* untyped_param,
                 void* const* untyped_states, int64_t begin, int64_t end) {
  constexpr int kStates = num_states(kRule);
  const T* const* rows = reinterpret_cast<const T* const*>(untyped_rows);
  T* param = static_cast<T*>(untyped_param);
  T* states[kMaxUpdateStates] = {};
  for (int s = 0; s < kStates; ++s) states[s] = static_cast<T*>(untyped_states[s]);
  alignas(64) double sums[kUpdateColumns];

  int64_t column = begin;
  while (end - column >= kCombineStep) {
    const int64_t left = (end - column) / kCombineStep * kCombineStep;
    const int64_t columns = left < kUpdateColumns ? left : kUpdateColumns;
    sum_rows(rows, weights, num_rows, column, columns, sums);
    for (int64_t lane = 0; lane < columns; lane += kLanes) {
      const int64_t here = column + lane;
      Vec value = load(param + here);
      Vec state[kMaxUpdateStates] = {};
      for (int s = 0; s < kStates; ++s) state[s] = load(states[s] + here);
      update_element<VectorMath, kRule>(factors, load(sums + lane), value, state);
      store(param + here, value);
      for (int s = 0; s < kStates; ++s) store(states[s] + here, state[s]);
    }
    column += columns;
  }
  for (; column < end; column += kLanes) {
    const int64_t count = end - column < kLanes ? end - column : kLanes;
    Vec sum = {};
    for (int k = 0; k < num_rows; ++k) sum += weights[k] * load_partial(rows[k] + column, count);
    Vec value = load_partial(param + column, count);
    Vec state[kMaxUpdateStates] = {};
    for (int s = 0; s < kStates; ++s) state[s] = load_partial(states[s] + column, count);
    update_element<VectorMath, kRule>(factors, sum, value, state);
    store_partial(param + column, value, count);
    for (int s = 0; s < kStates; ++s) store_partial(states[s] + column, state[s], count);
  }
}

}  // namespace
}  // namespace mtlfast
