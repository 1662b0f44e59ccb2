// The mean of every column without its `trim` largest and smallest entries.
#pragma once

#include "fold.h"

namespace mtlfast {

// Exchanges are written so that a NaN is passed on: it ends in the sum, or stays in the list that it began.

// Puts the smaller one into `kept` and returns the other.
template <class Value>
MTLFAST_DEVICE Value keep_lesser(Value& kept, Value value) {
  const Value other = kept > value ? kept : value;
  kept = value < kept ? value : kept;
  return other;
}
template <class Value>
MTLFAST_DEVICE Value keep_greater(Value& kept, Value value) {
  const Value other = kept < value ? kept : value;
  kept = value > kept ? value : kept;
  return other;
}

MTLFAST_DEVICE double not_a_number() { return __hiloint2double(0x7ff80000, 0); }

// Sorted lists of the smallest and the largest entries so far; what a list gives up is neither, and is added up. So
// nothing large is added only to be subtracted. Value: what elements are widened to.
template <class Value, int kTrim>
class TrimFold {
 public:
  struct Column {
    Value least[kTrim > 0 ? kTrim : 1];
    Value greatest[kTrim > 0 ? kTrim : 1];
    double sum = -0.0;
  };

  MTLFAST_DEVICE explicit TrimFold(int num_tasks) : count_(num_tasks - 2 * kTrim) {}

  MTLFAST_DEVICE void start(const Table&, int, int64, int64) {}

  template <bool kFirst>
  MTLFAST_DEVICE void add(Column& column, Value value, int, int r) const {
    static_assert(2 * kTrim <= kFoldRows);
#pragma unroll
    for (int i = 0; i < kTrim; ++i) {
      if (kFirst && i == r) {
        column.least[i] = value;
        return;
      }
      value = keep_lesser(column.least[i], value);
    }
#pragma unroll
    for (int i = 0; i < kTrim; ++i) {
      if (kFirst && kTrim + i == r) {
        column.greatest[i] = value;
        return;
      }
      value = keep_greater(column.greatest[i], value);
    }
    column.sum += value;
  }

  MTLFAST_DEVICE double finish(const Column& column, int64) const {
    double mean = column.sum / count_;
#pragma unroll
    for (int i = 0; i < kTrim; ++i) {  // false where one of them is NaN
      mean = column.least[i] <= column.greatest[i] ? mean : not_a_number();
    }
    return mean;
  }

 private:
  double count_;
};

template <class T, int kTrim, class Params>
MTLFAST_DEVICE void trimmed_mean(const Params& params) {
  TrimFold<decltype(widen(T())), kTrim> fold(params.num_tasks);
  fold_table<T>(params, fold);
}

// Unsigned numbers in the order of the elements, -0 before 0, of kBits bits.
template <class T>
struct Rank;
template <>
struct Rank<double> {
  typedef uint64 Key;
  static constexpr int kBits = 64;
  static MTLFAST_DEVICE Key key(double x) {
    union {
      double value;
      uint64 bits;
    } both = {x};
    return (both.bits >> 63) != 0 ? ~both.bits : both.bits | 0x8000000000000000u;
  }
};
template <int kSignificantBits>
struct SingleRank {
  typedef uint32 Key;
  static constexpr int kBits = kSignificantBits;
  static MTLFAST_DEVICE Key key(float x) {
    const uint32 bits = __float_as_uint(x);
    return ((bits >> 31) != 0 ? ~bits : bits | 0x80000000u) >> (32 - kBits);
  }
};
template <>
struct Rank<float> : SingleRank<32> {};
template <>
struct Rank<BFloat16> : SingleRank<16> {};
template <>
struct Rank<Float16> : SingleRank<19> {};  // sign, a float32's exponent, 10 digits

// Calls visit(value) for every entry of a column.
template <class T, class Visit>
MTLFAST_DEVICE void for_each_entry(const Table& table, int tensor, int num_tasks, int64 column,
                                   Visit visit) {
#pragma unroll 4
  for (int k = 0; k < num_tasks; ++k) {
    const T* row = table.pointer<const T>(tensor, k);
    visit(row != nullptr ? widen(row[column]) : decltype(widen(T()))(0));
  }
}

// The mean of one column for any trim: finds the smallest and the largest entry that is kept bit by bit, each time
// reading the column anew, and then adds up what lies between them.
template <class T>
MTLFAST_DEVICE double select_mean(const Table& table, int tensor, int num_tasks, int trim,
                                  int64 column) {
  typedef typename Rank<T>::Key Key;
  typedef decltype(widen(T())) Value;
  const int last = num_tasks - trim - 1;
  Key low = 0;   // at most `trim` keys are smaller
  Key high = 0;  // at most `last` keys are smaller
  for (int bit = Rank<T>::kBits - 1; bit >= 0; --bit) {
    const Key next_low = low | Key(1) << bit;
    const Key next_high = high | Key(1) << bit;
    int below_low = 0;
    int below_high = 0;
    for_each_entry<T>(table, tensor, num_tasks, column, [&](Value value) {
      const Key key = Rank<T>::key(value);
      below_low += key < next_low ? 1 : 0;
      below_high += key < next_high ? 1 : 0;
    });
    if (below_low <= trim) low = next_low;
    if (below_high <= last) high = next_high;
  }
  double between = 0.0;
  double least = 0.0;
  double greatest = 0.0;
  int from_low = 0;  // entries that are not larger than the smallest one kept
  int to_high = 0;   // entries that are smaller than the largest one kept
  bool is_nan = false;
  for_each_entry<T>(table, tensor, num_tasks, column, [&](Value value) {
    const Key key = Rank<T>::key(value);
    if (key == low) least = value;
    if (key == high) greatest = value;
    if (key > low && key < high) between += value;
    from_low += key <= low ? 1 : 0;
    to_high += key < high ? 1 : 0;
    is_nan = is_nan || value != value;
  });
  const int count = last + 1 - trim;
  if (is_nan) return not_a_number();
  if (low == high) return count * least / count;
  // Of entries that tie with an end as many as are kept.
  return (between + (from_low - trim) * least + (last + 1 - to_high) * greatest) / count;
}

template <class T, class Params>
MTLFAST_DEVICE void trimmed_mean_of_any(const Params& params) {
  const Table table(params.table);
  const int num_tasks = params.num_tasks;
  for_each_chunk(table, params.table.num_chunks, [&](int tensor, int64 begin, int64 end) {
    T* out = table.pointer<T>(tensor, num_tasks);
    if (out == nullptr) return;
    for (int64 column = begin + static_cast<int64>(threadIdx.x); column < end;
         column += kColumnThreads) {
      double mean = select_mean<T>(table, tensor, num_tasks, params.trim, column);
      if (params.accumulate) mean += widen(out[column]);
      out[column] = narrow<T>(mean);
    }
  });
}

}  // namespace mtlfast
