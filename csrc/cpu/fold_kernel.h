// What is computed column by column from all rows: they are folded one by one into a few float64 vectors, and these
// into the result. One read of every row, one write.
#pragma once

#include "column_walk.h"

namespace mtlfast {
namespace {

constexpr int kFoldRows = 4;  // rows read at once, as in combine_kernel.h
constexpr int kFoldUnroll = 4;
constexpr int kFoldStep = kFoldUnroll * kLanes;
constexpr int kFoldColumns = 1024;  // of one tile: 8 KiB a slot
constexpr int kFoldLater = 1 << 30;

// A fold is a class with
//   kSlots: how many vectors it keeps for kLanes columns, zeros at first;
//   start(column, columns): called before a tile of at most kFoldColumns columns;
//   fold(slots, value, row, position): takes in a row; position is how many came before it, or kFoldLater where that
//     is kFoldRows or more;
//   finish(slots, lane): the result for kLanes columns from `lane` of the tile on.

template <class T>
inline void put(T* target, Vec value, bool accumulate, bool past_cache) {
  if (accumulate) value += load(target);
  past_cache ? stream(target, value) : store(target, value);
}

// Folds the rows [row, row + kRows) over one tile, in `kept` between calls; the last call writes the result.
template <class T, int kRows, bool kFirst, bool kLast, class Fold>
inline void fold_tile(const Fold& fold, const T* const* rows, int row, T* out, int64_t column,
                      int64_t columns, bool accumulate, bool past_cache, double* kept) {
  constexpr int kAhead = prefetch_bytes(kFirst && kLast ? kRows : 2 * kFoldRows);
  for (int64_t step = 0; step < columns; step += kFoldStep) {
#pragma GCC unroll 8
    for (int u = 0; u < kFoldUnroll; ++u) {
      const int64_t lane = step + u * kLanes;
      Vec slots[Fold::kSlots] = {};
      if constexpr (!kFirst) __builtin_memcpy(slots, kept + lane * Fold::kSlots, sizeof(slots));
#pragma GCC unroll 4
      for (int k = 0; k < kRows; ++k) {
        const T* source = rows[row + k] + column + lane;
        fold.fold(slots, load(source), row + k, kFirst ? k : kFoldLater);
        if ((u * kLanes * sizeof(T)) % 64 == 0)
          __builtin_prefetch(source + kAhead / static_cast<int>(sizeof(T)), 0, 3);
      }
      if constexpr (kLast) {
        put(out + column + lane, fold.finish(slots, lane), accumulate, past_cache);
      } else {
        __builtin_memcpy(kept + lane * Fold::kSlots, slots, sizeof(slots));
      }
    }
  }
}

template <class T, bool kFirst, class Fold>
inline void fold_last(const Fold& fold, const T* const* rows, int row, int num_rows, T* out,
                      int64_t column, int64_t columns, bool accumulate, bool past_cache,
                      double* kept) {
  switch (num_rows - row) {
    case 1:
      return fold_tile<T, 1, kFirst, true>(fold, rows, row, out, column, columns, accumulate,
                                           past_cache, kept);
    case 2:
      return fold_tile<T, 2, kFirst, true>(fold, rows, row, out, column, columns, accumulate,
                                           past_cache, kept);
    case 3:
      return fold_tile<T, 3, kFirst, true>(fold, rows, row, out, column, columns, accumulate,
                                           past_cache, kept);
    default:
      return fold_tile<T, 4, kFirst, true>(fold, rows, row, out, column, columns, accumulate,
                                           past_cache, kept);
  }
}

template <class T, class Fold>
inline void fold_columns(const Fold& fold, const T* const* rows, int num_rows, T* out,
                         int64_t column, int64_t columns, bool accumulate, bool past_cache) {
  if (num_rows <= kFoldRows)
    return fold_last<T, true>(fold, rows, 0, num_rows, out, column, columns, accumulate, past_cache,
                              nullptr);
  alignas(64) double kept[kFoldColumns * Fold::kSlots];
  fold_tile<T, kFoldRows, true, false>(fold, rows, 0, out, column, columns, false, false, kept);
  int row = kFoldRows;
  for (; num_rows - row > kFoldRows; row += kFoldRows)
    fold_tile<T, kFoldRows, false, false>(fold, rows, row, out, column, columns, false, false,
                                          kept);
  fold_last<T, false>(fold, rows, row, num_rows, out, column, columns, accumulate, past_cache,
                      kept);
}

// out (+)= the result over the columns [begin, end), of at least one row.
template <class T, class Fold>
inline void fold_rows(Fold& fold, const T* const* rows, int num_rows, T* out, int64_t begin,
                      int64_t end, bool accumulate, bool past_cache) {
  walk_columns(
      out, begin, end, past_cache,
      [&](int64_t column, int64_t last, bool stream_it) {
        while (last - column >= kFoldStep) {
          const int64_t left = (last - column) / kFoldStep * kFoldStep;
          const int64_t columns = left < kFoldColumns ? left : kFoldColumns;
          fold.start(column, columns);
          fold_columns(fold, rows, num_rows, out, column, columns, accumulate, stream_it);
          column += columns;
        }
        return column;
      },
      [&](int64_t column, int64_t count) {
        fold.start(column, count);
        Vec slots[Fold::kSlots] = {};
        for (int k = 0; k < num_rows; ++k)
          fold.fold(slots, load_partial(rows[k] + column, count), k, k);
        Vec value = fold.finish(slots, 0);
        if (accumulate) value += load_partial(out + column, count);
        store_partial(out + column, value, count);
      });
}

}  // namespace
}  // namespace mtlfast
