// packed += upper triangle of R Rᵀ over a range of columns.
//
// Few rows: the whole triangle stays in registers, every element is read once, and products of float32 (and
// narrower) elements are exact in float64. More rows: see gramian_panel.h.
#pragma once

#include "gramian_panel.h"
#include "simd.h"

namespace mtlfast {
namespace {

#if defined(MTLFAST_ISA_avx512)
constexpr int kMaxDirectRows = 6;  // 21 accumulators and 6 rows in 32 registers
#else
constexpr int kMaxDirectRows = 4;  // 10 accumulators and 4 rows in 16 registers
#endif

template <class T, int kRows>
void gramian_direct(const void* const* rows, int64_t begin, int64_t end, double* packed) {
  constexpr int kPairs = num_pairs(kRows);
  // Enough independent sums to cover the latency of a fused multiply-add on two ports.
  constexpr int kUnroll = kPairs >= 8 ? 1 : (kPairs >= 6 ? 2 : (kPairs >= 3 ? 4 : 8));
  const T* row[kRows];
#pragma GCC unroll 8
  for (int k = 0; k < kRows; ++k) row[k] = static_cast<const T*>(rows[k]);

  Vec sums[kUnroll][kPairs] = {};
  auto accumulate = [&sums](const Vec* x, int u) __attribute__((always_inline)) {
    int pair = 0;
#pragma GCC unroll 8
    for (int i = 0; i < kRows; ++i)
#pragma GCC unroll 8
      for (int j = i; j < kRows; ++j, ++pair) sums[u][pair] += x[i] * x[j];
  };

  // A round covers whole cache lines, so that each line is fetched once.
  constexpr int kLineVectors = 64 / static_cast<int>(sizeof(T)) / kLanes;
  constexpr int kVectors = kUnroll > kLineVectors ? kUnroll : kLineVectors;
  int64_t column = begin;
  for (; column + kVectors * kLanes <= end; column += kVectors * kLanes) {
#pragma GCC unroll 16
    for (int v = 0; v < kVectors; ++v) {
      Vec x[kRows];
#pragma GCC unroll 8
      for (int k = 0; k < kRows; ++k) {
        const T* source = row[k] + column + v * kLanes;
        x[k] = load(source);
        if (v % kLineVectors == 0)
          __builtin_prefetch(source + prefetch_bytes(kRows) / static_cast<int>(sizeof(T)), 0, 3);
      }
      accumulate(x, v % kUnroll);
    }
  }
#pragma GCC unroll 1
  for (; column < end; column += kLanes) {
    const int64_t count = end - column < kLanes ? end - column : kLanes;
    Vec x[kRows];
#pragma GCC unroll 8
    for (int k = 0; k < kRows; ++k) x[k] = load_partial(row[k] + column, count);
    accumulate(x, 0);
  }
#pragma GCC unroll 32
  for (int pair = 0; pair < kPairs; ++pair) {
    Vec total = sums[0][pair];
#pragma GCC unroll 8
    for (int u = 1; u < kUnroll; ++u) total += sums[u][pair];
    packed[pair] += sum_lanes(total);
  }
}

// A float32 lane takes at most 256 sums before they move on to float64: the error stays near 1e-7.
constexpr int64_t kChunkColumns = 256 * 2 * kLanes;

// Whether float32 products of this chunk neither overflowed nor lost digits to underflow, judged by the
// sums of squares; a row of zeros is exact.
template <class T>
inline bool float_sums_are_exact_enough(const void* const* rows, int num_rows, int64_t begin,
                                        const double* packed) {
  for (int i = 0; i < num_rows; ++i) {
    const double square = packed[i * num_rows - i * (i - 1) / 2];
    if (square >= 1e-24 && square <= 1e30) continue;
    if (square != 0.0) return false;
    double exact = 0.0;
    gramian_direct<T, 1>(rows + i, begin, begin + kChunkColumns, &exact);
    if (exact != 0.0) return false;
  }
  return true;
}

inline int64_t gramian_scratch(int num_rows) {
  return panel_scratch(num_rows) + num_pairs(num_rows);
}

template <class T>
void gramian_many(const void* const* rows, int num_rows, int64_t begin, int64_t end, double* packed,
                  double* scratch) {
  int64_t column = begin;
  if constexpr (sizeof(T) < sizeof(double)) {
    double* chunk = scratch + panel_scratch(num_rows);
    for (; column + kChunkColumns <= end; column += kChunkColumns) {
      for (int pair = 0; pair < num_pairs(num_rows); ++pair) chunk[pair] = 0.0;
      gramian_panel<float, T>(rows, num_rows, column, column + kChunkColumns, chunk, scratch);
      if (float_sums_are_exact_enough<T>(rows, num_rows, column, chunk)) {
        for (int pair = 0; pair < num_pairs(num_rows); ++pair) packed[pair] += chunk[pair];
      } else {
        gramian_panel<double, T>(rows, num_rows, column, column + kChunkColumns, packed, scratch);
      }
    }
  }
  if (column < end) gramian_panel<double, T>(rows, num_rows, column, end, packed, scratch);
}

template <class T>
void gramian_rows(const void* const* rows, int num_rows, int64_t begin, int64_t end, double* packed,
                  double* scratch) {
  switch (num_rows) {
    case 1: return gramian_direct<T, 1>(rows, begin, end, packed);
    case 2: return gramian_direct<T, 2>(rows, begin, end, packed);
    case 3: return gramian_direct<T, 3>(rows, begin, end, packed);
    case 4: return gramian_direct<T, 4>(rows, begin, end, packed);
#if defined(MTLFAST_ISA_avx512)
    case 5: return gramian_direct<T, 5>(rows, begin, end, packed);
    case 6: return gramian_direct<T, 6>(rows, begin, end, packed);
#endif
    default: return gramian_many<T>(rows, num_rows, begin, end, packed, scratch);
  }
}

}  // namespace
}  // namespace mtlfast
