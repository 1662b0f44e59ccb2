// The mean of every column without its `trim` largest and smallest entries. They are held in sorted lists; what a
// list gives up is neither, and is added up. So nothing large is added only to be subtracted.
#pragma once

#include "fold_kernel.h"

namespace mtlfast {
namespace {

// Exchanges are written so that a NaN is passed on: it ends in the sum, or stays in the list that it began.

// Puts the smaller one into `kept` and returns the other.
inline Vec keep_lesser(Vec& kept, Vec value) {
  const Vec other = greater(kept, value);
  kept = lesser(value, kept);
  return other;
}
inline Vec keep_greater(Vec& kept, Vec value) {
  const Vec other = lesser(kept, value);
  kept = greater(value, kept);
  return other;
}

// Takes in a value after `position` others. slots: the `trim` smallest so far, which fill first, then the largest,
// then the sum of the others.
inline void trim_insert(Vec* slots, int trim, int position, Vec value) {
  for (int i = 0; i < trim; ++i) {
    if (i == position) {
      slots[i] = value;
      return;
    }
    value = keep_lesser(slots[i], value);
  }
  for (int i = trim; i < 2 * trim; ++i) {
    if (i == position) {
      slots[i] = value;
      return;
    }
    value = keep_greater(slots[i], value);
  }
  slots[2 * trim] = position == 2 * trim ? value : slots[2 * trim] + value;
}

inline Vec trim_finish(const Vec* slots, int trim, double count) {
  Vec mean = slots[2 * trim] / count;
  for (int i = 0; i < trim; ++i)  // false where one of them is NaN
    mean = slots[i] <= slots[trim + i] ? mean : Vec{} + __builtin_nan("");
  return mean;
}

// The lists in registers.
template <int kTrim>
struct TrimFold {
  static_assert(2 * kTrim <= kFoldRows);
  static constexpr int kSlots = 2 * kTrim + 1;

  double count;

  void start(int64_t, int64_t) {}
  void fold(Vec* slots, Vec value, int, int position) const {
    trim_insert(slots, kTrim, position, value);
  }
  Vec finish(const Vec* slots, int64_t) const { return trim_finish(slots, kTrim, count); }
};

constexpr int64_t kTrimDoubles = 4096;  // of one tile's lists, unless a single step needs more

inline int64_t trim_slots(int trim) { return 2 * static_cast<int64_t>(trim) + 1; }

inline int64_t trim_columns(int trim) {
  const int64_t steps = kTrimDoubles / (trim_slots(trim) * kFoldStep);
  return (steps < 1 ? 1 : steps) * kFoldStep;
}

inline int64_t trim_scratch(int trim) { return trim_slots(trim) * trim_columns(trim); }

// Any number of rows and any trim; a null row is one of zeros. kPart: the last columns, fewer than kLanes.
template <class T, bool kPart>
inline void trim_tile(const T* const* rows, int num_rows, int trim, T* out, int64_t column,
                      int64_t columns, bool accumulate, bool past_cache, double* scratch) {
  constexpr int kAhead = prefetch_bytes(2 * kFoldRows);
  const int64_t slots = trim_slots(trim);
  for (int k = 0; k < num_rows; ++k) {
    Vec* lists = reinterpret_cast<Vec*>(scratch);
    for (int64_t lane = 0; lane < columns; lane += kLanes, lists += slots) {
      Vec value = {};
      if (rows[k] != nullptr) {
        const T* source = rows[k] + column + lane;
        value = kPart ? load_partial(source, columns) : load(source);
        if ((lane * static_cast<int64_t>(sizeof(T))) % 64 == 0)
          __builtin_prefetch(source + kAhead / static_cast<int>(sizeof(T)), 0, 3);
      }
      trim_insert(lists, trim, k, value);
    }
  }
  const Vec* lists = reinterpret_cast<const Vec*>(scratch);
  for (int64_t lane = 0; lane < columns; lane += kLanes, lists += slots) {
    Vec mean = trim_finish(lists, trim, num_rows - 2 * trim);
    if constexpr (kPart) {
      if (accumulate) mean += load_partial(out + column, columns);
      store_partial(out + column, mean, columns);
    } else {
      put(out + column + lane, mean, accumulate, past_cache);
    }
  }
}

template <class T>
void trim_rows(const void* const* untyped_rows, int num_rows, int trim, void* untyped_out,
               int64_t begin, int64_t end, bool accumulate, bool stream, double* scratch) {
  const T* const* rows = reinterpret_cast<const T* const*>(untyped_rows);
  T* out = static_cast<T*>(untyped_out);
  bool all = true;
  for (int k = 0; k < num_rows; ++k) all = all && rows[k] != nullptr;
  if (trim <= 2 && all) {
    const double count = num_rows - 2 * trim;
    TrimFold<0> none{count};
    TrimFold<1> one{count};
    TrimFold<2> two{count};
    if (trim == 0) return fold_rows(none, rows, num_rows, out, begin, end, accumulate, stream);
    if (trim == 1) return fold_rows(one, rows, num_rows, out, begin, end, accumulate, stream);
    return fold_rows(two, rows, num_rows, out, begin, end, accumulate, stream);
  }
  const int64_t tile = trim_columns(trim);
  walk_columns(
      out, begin, end, stream,
      [&](int64_t column, int64_t last, bool past_cache) {
        while (last - column >= kFoldStep) {
          const int64_t left = (last - column) / kFoldStep * kFoldStep;
          const int64_t columns = left < tile ? left : tile;
          trim_tile<T, false>(rows, num_rows, trim, out, column, columns, accumulate, past_cache,
                              scratch);
          column += columns;
        }
        return column;
      },
      [&](int64_t column, int64_t count) {
        trim_tile<T, true>(rows, num_rows, trim, out, column, count, accumulate, false, scratch);
      });
}

}  // namespace
}  // namespace mtlfast
