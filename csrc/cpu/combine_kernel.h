// out = Σ_k weights[k] · rows[k] over a range of columns: one read of every row, one write.
#pragma once

#include "column_walk.h"

namespace mtlfast {
namespace {

// Rows read at once. More streams than that fall out of step with the hardware prefetchers, and page-aligned
// rows (all large tensors) compete for the same few cache sets.
constexpr int kCombineRows = 4;
constexpr int kCombineUnroll = 4;
constexpr int kCombineStep = kCombineUnroll * kLanes;
constexpr int kCombineColumns = 4096;  // float64 sums of one tile: 32 KiB

// sums (+)= Σ weights[k] · rows[k] over one tile; the last call converts into out.
template <class T, int kRows, bool kFirst, bool kLast, bool kStream>
inline void combine_tile(const T* const* rows, const double* weights, T* out, int64_t column,
                         int64_t columns, double* sums) {
  constexpr int kAhead = prefetch_bytes(kFirst && kLast ? kRows : 2 * kCombineRows);
  for (int64_t step = 0; step < columns; step += kCombineStep) {
#pragma GCC unroll 8
    for (int u = 0; u < kCombineUnroll; ++u) {
      const int64_t lane = step + u * kLanes;
      Vec sum = {};
      if constexpr (!kFirst) sum = *reinterpret_cast<const Vec*>(sums + lane);
#pragma GCC unroll 4
      for (int k = 0; k < kRows; ++k) {
        const T* source = rows[k] + column + lane;
        sum += weights[k] * load(source);
        if ((u * kLanes * sizeof(T)) % 64 == 0)
          __builtin_prefetch(source + kAhead / static_cast<int>(sizeof(T)), 0, 3);
      }
      if constexpr (!kLast) {
        *reinterpret_cast<Vec*>(sums + lane) = sum;
      } else if constexpr (kStream) {
        stream(out + column + lane, sum);
      } else {
        store(out + column + lane, sum);
      }
    }
  }
}

template <class T, bool kFirst, bool kStream>
inline void combine_last(const T* const* rows, const double* weights, int num_rows, T* out,
                         int64_t column, int64_t columns, double* sums) {
  switch (num_rows) {
    case 1:
      return combine_tile<T, 1, kFirst, true, kStream>(rows, weights, out, column, columns, sums);
    case 2:
      return combine_tile<T, 2, kFirst, true, kStream>(rows, weights, out, column, columns, sums);
    case 3:
      return combine_tile<T, 3, kFirst, true, kStream>(rows, weights, out, column, columns, sums);
    default:
      return combine_tile<T, 4, kFirst, true, kStream>(rows, weights, out, column, columns, sums);
  }
}

template <class T, bool kStream>
inline void combine_columns(const T* const* rows, const double* weights, int num_rows, T* out,
                            int64_t column, int64_t columns) {
  if (num_rows <= kCombineRows)
    return combine_last<T, true, kStream>(rows, weights, num_rows, out, column, columns, nullptr);
  alignas(64) double sums[kCombineColumns];
  combine_tile<T, kCombineRows, true, false, kStream>(rows, weights, out, column, columns, sums);
  int k = kCombineRows;
  for (; num_rows - k > kCombineRows; k += kCombineRows)
    combine_tile<T, kCombineRows, false, false, kStream>(rows + k, weights + k, out, column,
                                                         columns, sums);
  combine_last<T, false, kStream>(rows + k, weights + k, num_rows - k, out, column, columns, sums);
}

template <class T>
inline void combine_partial(const T* const* rows, const double* weights, int num_rows, T* out,
                            int64_t column, int64_t count) {
  Vec sum = {};
  for (int k = 0; k < num_rows; ++k) sum += weights[k] * load_partial(rows[k] + column, count);
  store_partial(out + column, sum, count);
}

template <class T, bool kStream>
inline int64_t combine_tiles(const T* const* rows, const double* weights, int num_rows, T* out,
                             int64_t column, int64_t end) {
  while (end - column >= kCombineStep) {
    const int64_t left = (end - column) / kCombineStep * kCombineStep;
    const int64_t columns = left < kCombineColumns ? left : kCombineColumns;
    combine_columns<T, kStream>(rows, weights, num_rows, out, column, columns);
    column += columns;
  }
  return column;
}

template <class T>
void combine_rows(const void* const* untyped_rows, const double* weights, int num_rows,
                  void* untyped_out, int64_t begin, int64_t end, bool stream) {
  const T* const* rows = reinterpret_cast<const T* const*>(untyped_rows);
  T* out = static_cast<T*>(untyped_out);
  walk_columns(
      out, begin, end, stream && num_rows > 0,
      [&](int64_t column, int64_t last, bool past_cache) {
        if (num_rows == 0) return column;
        return past_cache ? combine_tiles<T, true>(rows, weights, num_rows, out, column, last)
                          : combine_tiles<T, false>(rows, weights, num_rows, out, column, last);
      },
      [&](int64_t column, int64_t count) {
        combine_partial(rows, weights, num_rows, out, column, count);
      });
}

}  // namespace
}  // namespace mtlfast
