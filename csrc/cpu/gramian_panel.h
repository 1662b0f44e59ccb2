// R Rᵀ for many rows: a tile of columns that stays in cache is multiplied block by block. Sums are float64,
// or float32 for short chunks of a long range (gramian_kernel.h decides and flushes them).
//
// Rows that are stored in the type of the sums are read where they are; others, and ends of a range that do not
// fill a step, are first converted into a panel.
#pragma once

#include "simd.h"

namespace mtlfast {
namespace {

typedef float WideFloat __attribute__((vector_size(kLanes * 8)));

template <class A>
struct Sums;
template <>
struct Sums<double> {
  typedef Vec Vector;
};
template <>
struct Sums<float> {
  typedef WideFloat Vector;
};

constexpr int kBlock = 4;  // rows of a block; 16 accumulators
constexpr int kStep = 32;  // columns of one round of the inner loop
// Of a tile: 32 products a lane. With AVX-512 2 KiB a row in float32, as far as the prefetches reach.
constexpr int64_t kTileColumns = 32 * 2 * kLanes;

constexpr int num_pairs(int rows) { return rows * (rows + 1) / 2; }
inline int num_blocks(int num_rows) { return (num_rows + kBlock - 1) / kBlock; }

inline int64_t panel_scratch(int num_rows) {
  const int64_t sums =
      static_cast<int64_t>(num_pairs(num_blocks(num_rows))) * kBlock * kBlock * kLanes;
  return num_rows * kTileColumns + sums;
}

inline double sum_lanes(WideFloat value) {
  FloatVec half[2];
  __builtin_memcpy(half, &value, sizeof(value));
  return sum_lanes(widen(half[0]) + widen(half[1]));
}

inline void convert(double* target, Vec value) { store_unaligned(target, value); }
inline void convert(float* target, Vec value) { store_unaligned(target, narrow(value)); }

// One row of the panel: count columns of source, zeros up to padded. float32 and narrower types are exact in both.
template <class A, class T>
inline void fill_row(A* target, const T* source, int64_t count, int64_t padded) {
  int64_t column = 0;
  for (; column + kLanes <= count; column += kLanes) {
    if constexpr (sizeof(A) == sizeof(float)) {
      store_unaligned(target + column, load_float(source + column));
    } else {
      store_unaligned(target + column, load(source + column));
    }
    if ((column * static_cast<int64_t>(sizeof(T))) % 64 == 0)
      __builtin_prefetch(source + column + prefetch_bytes(2 * kBlock) / static_cast<int>(sizeof(T)),
                         0, 3);
  }
  if (column < count) {
    convert(target + column, load_partial(source + column, count - column));
    column += kLanes;
  }
  for (; column < padded; column += kLanes) convert(target + column, Vec{});
}

// sums[i][j] += a_i · b_j, lane by lane; a and b are blocks of rows. The tile is summed on its own first: few
// additions to one number, so that even equal terms, whose roundings all agree, stay near 1e-7.
template <class A, int kRows>
inline void multiply_pair(const A* const* a, const A* const* b, int64_t columns,
                          typename Sums<A>::Vector* sums) {
  typedef typename Sums<A>::Vector V;
  V local[kRows][kBlock] = {};
  for (int64_t column = 0; column < columns;
       column += static_cast<int64_t>(sizeof(V) / sizeof(A))) {
    V x[kRows];
#pragma GCC unroll 4
    for (int i = 0; i < kRows; ++i) x[i] = load_unaligned<V>(a[i] + column);
#pragma GCC unroll 4
    for (int j = 0; j < kBlock; ++j) {
      const V y = load_unaligned<V>(b[j] + column);
#pragma GCC unroll 4
      for (int i = 0; i < kRows; ++i) local[i][j] += x[i] * y;
    }
  }
#pragma GCC unroll 4
  for (int i = 0; i < kRows; ++i)
#pragma GCC unroll 4
    for (int j = 0; j < kBlock; ++j) sums[i * kBlock + j] += local[i][j];
}

// The upper triangle of a block with itself. It is the first to touch its rows, so it fetches them ahead.
template <class A, int kRows>
inline void multiply_self(const A* const* a, int64_t columns, typename Sums<A>::Vector* sums) {
  typedef typename Sums<A>::Vector V;
  V local[kRows][kRows] = {};
  for (int64_t column = 0; column < columns; column += kStep) {
#pragma GCC unroll 4
    for (int i = 0; i < kRows; ++i)
#pragma GCC unroll 4
      for (int line = 0; line < kStep; line += static_cast<int>(64 / sizeof(A)))
        __builtin_prefetch(
            a[i] + column + line + prefetch_bytes(2 * kBlock) / static_cast<int>(sizeof(A)), 0, 3);
#pragma GCC unroll 4
    for (int step = 0; step < kStep; step += static_cast<int>(sizeof(V) / sizeof(A))) {
      V x[kRows];
#pragma GCC unroll 4
      for (int i = 0; i < kRows; ++i) x[i] = load_unaligned<V>(a[i] + column + step);
#pragma GCC unroll 4
      for (int i = 0; i < kRows; ++i)
#pragma GCC unroll 4
        for (int j = i; j < kRows; ++j) local[i][j] += x[i] * x[j];
    }
  }
#pragma GCC unroll 4
  for (int i = 0; i < kRows; ++i)
#pragma GCC unroll 4
    for (int j = i; j < kRows; ++j) sums[i * kBlock + j] += local[i][j];
}

template <class A>
inline void multiply_pair(int num_rows, const A* const* a, const A* const* b, int64_t columns,
                          typename Sums<A>::Vector* sums) {
  switch (num_rows) {
    case 1: return multiply_pair<A, 1>(a, b, columns, sums);
    case 2: return multiply_pair<A, 2>(a, b, columns, sums);
    case 3: return multiply_pair<A, 3>(a, b, columns, sums);
    default: return multiply_pair<A, 4>(a, b, columns, sums);
  }
}

template <class A>
inline void multiply_self(int num_rows, const A* const* a, int64_t columns,
                          typename Sums<A>::Vector* sums) {
  switch (num_rows) {
    case 1: return multiply_self<A, 1>(a, columns, sums);
    case 2: return multiply_self<A, 2>(a, columns, sums);
    case 3: return multiply_self<A, 3>(a, columns, sums);
    default: return multiply_self<A, 4>(a, columns, sums);
  }
}

template <class A, class T>
struct SameType {
  static constexpr bool value = false;
};
template <class A>
struct SameType<A, A> {
  static constexpr bool value = true;
};

// Columns [begin, end).
template <class A, class T>
void gramian_panel(const void* const* rows, int num_rows, int64_t begin, int64_t end,
                   double* packed, double* scratch) {
  typedef typename Sums<A>::Vector V;
  constexpr int kBlockSums = kBlock * kBlock;
  const int blocks = num_blocks(num_rows);
  A* panel = reinterpret_cast<A*>(scratch);
  V* sums = reinterpret_cast<V*>(scratch + num_rows * kTileColumns);
  for (int i = 0; i < num_pairs(blocks) * kBlockSums; ++i) sums[i] = V{};

  for (int64_t tile = begin; tile < end; tile += kTileColumns) {
    const int64_t count = end - tile < kTileColumns ? end - tile : kTileColumns;
    const int64_t columns = (count + kStep - 1) / kStep * kStep;
    const bool in_place = SameType<A, T>::value && count == columns;
    // Row k of this tile: in the tensor, or in the panel.
    const auto tile_row = [&](int k) __attribute__((always_inline)) {
      return in_place ? static_cast<const A*>(rows[k]) + tile : panel + k * kTileColumns;
    };
    if (!in_place)
      for (int k = 0; k < num_rows; ++k)
        fill_row(panel + k * kTileColumns, static_cast<const T*>(rows[k]) + tile, count, columns);

    V* block_sums = sums;
    for (int block_j = 0; block_j < blocks; ++block_j) {
      const int first = block_j * kBlock;
      const int rows_j = num_rows - first < kBlock ? num_rows - first : kBlock;
      const A* b[kBlock];
      for (int j = 0; j < rows_j; ++j) b[j] = tile_row(first + j);
      multiply_self<A>(rows_j, b, columns, block_sums + block_j * kBlockSums);
      // The later block is the one that may be short, so it comes first: sums[row in J][row in I].
      for (int block_i = 0; block_i < block_j; ++block_i, block_sums += kBlockSums) {
        const A* a[kBlock];
        for (int i = 0; i < kBlock; ++i) a[i] = tile_row(block_i * kBlock + i);
        multiply_pair<A>(rows_j, b, a, columns, block_sums);
      }
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
