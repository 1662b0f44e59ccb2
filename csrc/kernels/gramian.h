// The Gramian of up to 12 tasks in one pass: each thread holds the whole upper triangle in registers.
//
// Threads add products over one chunk, then the lanes of each warp are added up in float64. Products are added in
// float64, which is exact but for rounding of the sums, or for speed in float32, where a thread adds no more than
// chunk_columns / threads of them. Every block leaves float64 sums, and the block that finishes last adds those up. The
// order of all additions is fixed by the sizes and the grid, so results are the same bits from run to run.
#pragma once

#include "element.h"
#include "gramian_sum.h"
#include "table.h"

namespace mtlfast {

// Whether sums of squares may overflow, or lose digits to underflow: in float32, unless the elements have too few
// exponents for that.
template <class T, class Sum>
struct Guard {
  static constexpr bool kNeeded = sizeof(Sum) == sizeof(float);
};
template <class Sum>
struct Guard<Float16, Sum> {
  static constexpr bool kNeeded = false;
};

constexpr float kSmallestSafe =
    8.8817842e-16f;  // 2^-50: products of two such keep all their digits

// Whether a sum is far from overflow, and no NaN: what NaN and infinity do to rows that are not there is left to
// add_exactly().
MTLFAST_DEVICE bool is_safe(float sum) { return fabsf(sum) <= 1e36f; }
MTLFAST_DEVICE bool is_safe(double sum) { return fabs(sum) <= 1e300; }

// What this thread reads: columns begin + i of every row, in packets up to vector_end, then one by one.
template <class T, int kRows>
struct Share {
  static constexpr int kThreads = gramian_threads(kRows);
  static constexpr int kCount = Vector<T>::kCount;
  static constexpr int kStep = kThreads * kCount;

  const T* rows[kRows];  // null: zeros
  int64 vector_begin;
  int64 vector_end;
  int64 begin;
  int64 end;

  // Returns whether any row is there.
  MTLFAST_DEVICE bool read(const Table& table, int tensor, int num_tasks, int64 first, int64 last) {
    bool any = false;
#pragma unroll
    for (int k = 0; k < kRows; ++k) {
      rows[k] = k < num_tasks ? table.pointer<const T>(tensor, k) : nullptr;
      any = any || rows[k] != nullptr;
    }
    const int64 thread = threadIdx.x;
    const int64 in_packets = table.aligned(tensor) ? (last - first) / kCount * kCount : 0;
    vector_begin = first + thread * kCount;
    vector_end = first + in_packets;
    begin = vector_end + thread;
    end = last;
    return any;
  }

  MTLFAST_DEVICE Packet packet(int k, int64 column) const {
    return rows[k] != nullptr ? load_packet(rows[k] + column) : Packet{{0, 0, 0, 0}};
  }

  // The columns that for_each_column() visits.
  template <class Visit>
  MTLFAST_DEVICE void for_each_index(Visit visit) const {
    for (int64 column = vector_begin; column < vector_end; column += kStep) {
      for (int e = 0; e < kCount; ++e) visit(column + e);
    }
    for (int64 column = begin; column < end; column += kThreads) visit(column);
  }

  // Calls visit(x) with a column's K elements as Sum.
  template <class Sum, class Visit>
  MTLFAST_DEVICE void for_each_column(Visit visit) const {
    constexpr int kUnroll = kRows <= 2 ? 4 : (kRows <= 4 ? 2 : 1);  // packets of a row in flight
    const auto take = [&](const Packet* packets) {
#pragma unroll
      for (int e = 0; e < kCount; ++e) {
        Sum x[kRows];
#pragma unroll
        for (int k = 0; k < kRows; ++k) x[k] = element<T>(packets[k], e);
        visit(x);
      }
    };
    int64 column = vector_begin;
    for (; column < vector_end - (kUnroll - 1) * kStep; column += kUnroll * kStep) {
      Packet packets[kUnroll][kRows];
#pragma unroll
      for (int u = 0; u < kUnroll; ++u) {
#pragma unroll
        for (int k = 0; k < kRows; ++k) packets[u][k] = packet(k, column + u * kStep);
      }
#pragma unroll
      for (int u = 0; u < kUnroll; ++u) take(packets[u]);
    }
    for (; column < vector_end; column += kStep) {
      Packet packets[kRows];
#pragma unroll
      for (int k = 0; k < kRows; ++k) packets[k] = packet(k, column);
      take(packets);
    }
    for (column = begin; column < end; column += kThreads) {
      Sum x[kRows];
#pragma unroll
      for (int k = 0; k < kRows; ++k) {
        x[k] = rows[k] != nullptr ? static_cast<Sum>(widen(rows[k][column])) : Sum(0);
      }
      visit(x);
    }
  }
};

// Adds this warp's share of one chunk to its totals, product by product in float64, where float32 sums would not do:
// rare, so it may be slow, and it is no part of the loop's registers.
template <class T, int kRows, class Params>
__device__ __noinline__ void add_exactly(const Params& params, int tensor, int64 begin, int64 end,
                                         double* totals) {
  const Table table(params.table);
  Share<T, kRows> share;
  share.read(table, tensor, params.num_tasks, begin, end);
  int pair = 0;
  for (int i = 0; i < kRows; ++i) {
    for (int j = i; j < kRows; ++j, ++pair) {
      if (j >= params.num_tasks) continue;
      const T* left = table.pointer<const T>(tensor, i);
      const T* right = table.pointer<const T>(tensor, j);
      double sum = 0.0;
      if (left != nullptr && right != nullptr) {
        share.for_each_index([&](int64 column) {
          sum +=
              static_cast<double>(widen(left[column])) * static_cast<double>(widen(right[column]));
        });
      }
      sum = warp_sum(sum);
      if (threadIdx.x % kWarp == 0) totals[pair] += sum;
    }
  }
}

template <class T, class Sum, int kRows, class Params>
MTLFAST_DEVICE void gramian(const Params& params) {
  constexpr int kPairs = kRows * (kRows + 1) / 2;
  constexpr int kWarps = gramian_threads(kRows) / kWarp;
  MTLFAST_SHARED(double, totals, kWarps* kPairs);
  const Table table(params.table);
  double* own = totals + static_cast<int>(threadIdx.x) / kWarp * kPairs;
  const bool leads = threadIdx.x % kWarp == 0;
  if (leads) {
    for (int pair = 0; pair < kPairs; ++pair) own[pair] = 0.0;
  }

  for_each_chunk(table, params.table.num_chunks, [&](int tensor, int64 begin, int64 end) {
    Share<T, kRows> share;
    if (!share.read(table, tensor, params.num_tasks, begin, end)) return;
    Sum sums[kPairs];
    float largest[kRows];
#pragma unroll
    for (int pair = 0; pair < kPairs; ++pair) sums[pair] = 0;
#pragma unroll
    for (int k = 0; k < kRows; ++k) largest[k] = 0.0f;
    share.template for_each_column<Sum>([&](const Sum* x) {
      int pair = 0;
#pragma unroll
      for (int i = 0; i < kRows; ++i) {
        if constexpr (Guard<T, Sum>::kNeeded) largest[i] = fmaxf(largest[i], fabsf(x[i]));
#pragma unroll
        for (int j = i; j < kRows; ++j, ++pair) sums[pair] += x[i] * x[j];
      }
    });

    bool unsafe = false;
    int square = 0;
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      unsafe = unsafe || (largest[i] > 0.0f && largest[i] < kSmallestSafe);
      unsafe = unsafe || !is_safe(sums[square]);
      square += kRows - i;
    }
    if (__any_sync(kAllLanes, unsafe) != 0) {
      return add_exactly<T, kRows>(params, tensor, begin, end, own);
    }
#pragma unroll
    for (int pair = 0; pair < kPairs; ++pair) {
      const double total = warp_sum(sums[pair]);
      if (leads) own[pair] += total;
    }
  });

  finish_sums(params.sums, totals, kWarps, kPairs, [&](int pair, double total) {
    int i = 0;
    for (; pair >= kRows - i; ++i) pair -= kRows - i;
    const int j = i + pair;
    if (j >= params.num_tasks) return;  // rows that only fill up the triangle
    if (params.accumulate) total += params.out[i * params.num_tasks + j];
    params.out[i * params.num_tasks + j] = total;
    params.out[j * params.num_tasks + i] = total;
  });
}

}  // namespace mtlfast
