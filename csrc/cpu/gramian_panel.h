// R Rᵀ for many rows: a tile of columns is copied into a contiguous panel that stays in cache, and the panel
// is multiplied block by block. The panel is float64, or float32 for long ranges (gramian_kernel.h decides).
//
// The copy pays for itself: rows that start on page boundaries would fight for the same few cache sets.
#pragma once

#include "simd.h"

namespace mtlfast {
namespace {

typedef float WideFloat __attribute__((vector_size(kLanes * 8)));

template <class A>
struct Panel;
template <>
struct Panel<double> {
  typedef Vec Vector;
  static constexpr int kColumns = 64;
};
template <>
struct Panel<float> {
  typedef WideFloat Vector;
  static constexpr int kColumns = 128;
};
constexpr int64_t kPanelRowDoubles = 64;  // both panels: 512 bytes a row

constexpr int kBlock = 4;  // rows of a block; 16 accumulators
constexpr int kStep = 32;  // panels are padded with zeros to a multiple of this many columns

constexpr int num_pairs(int rows) { return rows * (rows + 1) / 2; }
inline int num_blocks(int num_rows) { return (num_rows + kBlock - 1) / kBlock; }

inline int64_t panel_scratch(int num_rows) {
  const int64_t sums =
      static_cast<int64_t>(num_pairs(num_blocks(num_rows))) * kBlock * kBlock * kLanes;
  return num_rows * kPanelRowDoubles + sums;
}

inline double sum_lanes(WideFloat value) {
  FloatVec half[2];
  __builtin_memcpy(half, &value, sizeof(value));
  return sum_lanes(widen(half[0]) + widen(half[1]));
}

// One row of the panel: count columns of source, zeros up to padded.
template <class T>
inline void fill_row(double* target, const T* source, int64_t count, int64_t padded) {
  int64_t column = 0;
  for (; column + kLanes <= count; column += kLanes)
    store_unaligned(target + column, load(source + column));
  if (column < count) {
    store_unaligned(target + column, load_partial(source + column, count - column));
    column += kLanes;
  }
  for (; column < padded; column += kLanes) store_unaligned(target + column, Vec{});
}

template <class T>
inline void fill_row(float* target, const T* source, int64_t count, int64_t padded) {
  int64_t column = 0;
  if constexpr (sizeof(T) == sizeof(float))
    for (; column + 2 * kLanes <= count; column += 2 * kLanes)
      store_unaligned(target + column, load_unaligned<WideFloat>(source + column));
  for (; column + kLanes <= count; column += kLanes)
    store_unaligned(target + column, load_float(source + column));
  for (; column < padded; ++column) target[column] = 0.0f;
}

// sums[i][j] += a_i · b_j, lane by lane; a and b are blocks of panel rows.
template <class A, int kRows>
inline void multiply_pair(const A* a, const A* b, int64_t columns,
                          typename Panel<A>::Vector* sums) {
  typedef typename Panel<A>::Vector V;
  constexpr int kStride = Panel<A>::kColumns;
  V local[kRows][kBlock];
#pragma GCC unroll 4
  for (int i = 0; i < kRows; ++i)
#pragma GCC unroll 4
    for (int j = 0; j < kBlock; ++j) local[i][j] = sums[i * kBlock + j];
  for (int64_t column = 0; column < columns;
       column += static_cast<int64_t>(sizeof(V) / sizeof(A))) {
    V x[kRows];
#pragma GCC unroll 4
    for (int i = 0; i < kRows; ++i) x[i] = load_unaligned<V>(a + i * kStride + column);
#pragma GCC unroll 4
    for (int j = 0; j < kBlock; ++j) {
      const V y = load_unaligned<V>(b + j * kStride + column);
#pragma GCC unroll 4
      for (int i = 0; i < kRows; ++i) local[i][j] += x[i] * y;
    }
  }
#pragma GCC unroll 4
  for (int i = 0; i < kRows; ++i)
#pragma GCC unroll 4
    for (int j = 0; j < kBlock; ++j) sums[i * kBlock + j] = local[i][j];
}

// The upper triangle of a block with itself. next[i] is where the row goes on after this panel: it is fetched
// meanwhile, because the bursts of a tile are too short for the hardware prefetchers.
template <class A, class T, int kRows>
inline void multiply_self(const A* a, int64_t columns, typename Panel<A>::Vector* sums,
                          const T* const* next) {
  typedef typename Panel<A>::Vector V;
  constexpr int kStride = Panel<A>::kColumns;
  V local[kRows][kRows];
#pragma GCC unroll 4
  for (int i = 0; i < kRows; ++i)
#pragma GCC unroll 4
    for (int j = i; j < kRows; ++j) local[i][j] = sums[i * kBlock + j];
  for (int64_t column = 0; column < columns; column += kStep) {
#pragma GCC unroll 4
    for (int i = 0; i < kRows; ++i)
#pragma GCC unroll 4
      for (int line = 0; line < kStep; line += static_cast<int>(64 / sizeof(T)))
        __builtin_prefetch(next[i] + column + line, 0, 3);
#pragma GCC unroll 4
    for (int step = 0; step < kStep; step += static_cast<int>(sizeof(V) / sizeof(A))) {
      V x[kRows];
#pragma GCC unroll 4
      for (int i = 0; i < kRows; ++i) x[i] = load_unaligned<V>(a + i * kStride + column + step);
#pragma GCC unroll 4
      for (int i = 0; i < kRows; ++i)
#pragma GCC unroll 4
        for (int j = i; j < kRows; ++j) local[i][j] += x[i] * x[j];
    }
  }
#pragma GCC unroll 4
  for (int i = 0; i < kRows; ++i)
#pragma GCC unroll 4
    for (int j = i; j < kRows; ++j) sums[i * kBlock + j] = local[i][j];
}

template <class A>
inline void multiply_pair(int num_rows, const A* a, const A* b, int64_t columns,
                          typename Panel<A>::Vector* sums) {
  switch (num_rows) {
    case 1: return multiply_pair<A, 1>(a, b, columns, sums);
    case 2: return multiply_pair<A, 2>(a, b, columns, sums);
    case 3: return multiply_pair<A, 3>(a, b, columns, sums);
    default: return multiply_pair<A, 4>(a, b, columns, sums);
  }
}

template <class A, class T>
inline void multiply_self(int num_rows, const A* a, int64_t columns,
                          typename Panel<A>::Vector* sums, const T* const* next) {
  switch (num_rows) {
    case 1: return multiply_self<A, T, 1>(a, columns, sums, next);
    case 2: return multiply_self<A, T, 2>(a, columns, sums, next);
    case 3: return multiply_self<A, T, 3>(a, columns, sums, next);
    default: return multiply_self<A, T, 4>(a, columns, sums, next);
  }
}

// Columns [begin, end); rows may be fetched ahead up to limit.
template <class A, class T>
void gramian_panel(const void* const* rows, int num_rows, int64_t begin, int64_t end, int64_t limit,
                   double* packed, double* scratch) {
  typedef typename Panel<A>::Vector V;
  constexpr int64_t kColumns = Panel<A>::kColumns;
  constexpr int kBlockSums = kBlock * kBlock;
  const int blocks = num_blocks(num_rows);
  A* panel = reinterpret_cast<A*>(scratch);
  V* sums = reinterpret_cast<V*>(scratch + num_rows * kPanelRowDoubles);
  for (int i = 0; i < num_pairs(blocks) * kBlockSums; ++i) sums[i] = V{};

  for (int64_t tile = begin; tile < end; tile += kColumns) {
    const int64_t count = end - tile < kColumns ? end - tile : kColumns;
    const int64_t columns = (count + kStep - 1) / kStep * kStep;
    const int64_t ahead = tile + 2 * kColumns <= limit ? kColumns : 0;
    for (int k = 0; k < num_rows; ++k)
      fill_row(panel + k * kColumns, static_cast<const T*>(rows[k]) + tile, count, columns);

    V* block_sums = sums;
    for (int block_j = 0; block_j < blocks; ++block_j) {
      const int first = block_j * kBlock;
      const int rows_j = num_rows - first < kBlock ? num_rows - first : kBlock;
      const A* panel_j = panel + first * kColumns;
      // The later block is the one that may be short, so it comes first: sums[row in J][row in I].
      for (int block_i = 0; block_i < block_j; ++block_i, block_sums += kBlockSums)
        multiply_pair<A>(rows_j, panel_j, panel + block_i * kBlock * kColumns, columns, block_sums);
      const T* next[kBlock];
      for (int i = 0; i < rows_j; ++i)
        next[i] = static_cast<const T*>(rows[first + i]) + tile + ahead;
      multiply_self<A, T>(rows_j, panel_j, columns, block_sums, next);
      block_sums += kBlockSums;
    }
  }

  const V* block_sums = sums;
  for (int block_j = 0; block_j < blocks; ++block_j)
    for (int block_i = 0; block_i <= block_j; ++block_i, block_sums += kBlockSums)
      for (int b = 0; b < kBlock; ++b)
        for (int a = 0; a < kBlock; ++a) {
          const int64_t i = block_i * kBlock + a;
          const int64_t j = block_j * kBlock + b;
          if (j >= num_rows || i > j) continue;
          const int entry = block_i == block_j ? a * kBlock + b : b * kBlock + a;
          packed[i * num_rows - i * (i - 1) / 2 + (j - i)] += sum_lanes(block_sums[entry]);
        }
}

}  // namespace
}  // namespace mtlfast
