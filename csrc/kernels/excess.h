// ExcessMTL: adds the squares of every task's gradient to their sums S and returns sum g^2 / sqrt(S + 1e-7).
#pragma once

#include "element.h"
#include "gramian_sum.h"
#include "table.h"

namespace mtlfast {

// What the sums of a gradient type are kept in: float32, for float64 gradients float64; and their largest value,
// where they stop, because from Inf there is no way back.
template <class T>
struct Squares {
  typedef float Type;
  static constexpr double kLargest = 3.4028234663852886e38;
};
template <>
struct Squares<double> {
  typedef double Type;
  static constexpr double kLargest = 1.7976931348623157e308;
};

MTLFAST_DEVICE double reciprocal_root(double x) {
#if defined(__CUDA_ARCH__)
  return rsqrt(x);
#else
  return 1.0 / sqrt(x);
#endif
}

// `sum` becomes the new sum, the return value is what it adds to the excess.
template <class T>
MTLFAST_DEVICE double excess_step(double gradient, double& sum) {
  const double square = gradient * gradient;
  const double total = sum + square;
  sum = Squares<T>::kLargest < total ? Squares<T>::kLargest : total;
  return square * reciprocal_root(total + 1e-7);
}

// This thread's columns of [begin, end) of one row; the first `in_packets` of them in packets.
template <class T>
MTLFAST_DEVICE double excess_row(const T* grad, const typename Squares<T>::Type* old,
                                 typename Squares<T>::Type* sums, int64 begin, int64 in_packets,
                                 int64 end) {
  typedef typename Squares<T>::Type S;
  constexpr int kCount = Vector<T>::kCount;
  constexpr int kPart = Vector<S>::kCount;
  constexpr int kParts = kCount / kPart;  // packets of sums to a packet of gradients
  constexpr int kUnroll = kParts == 1 ? 2 : 1;
  constexpr int64 kStep = static_cast<int64>(kColumnThreads) * kCount;
  const int64 thread = threadIdx.x;
  const int64 vector_end = begin + in_packets;
  double excess = 0.0;
  for (int64 first = begin + thread * kCount; first < vector_end; first += kUnroll * kStep) {
    Packet grads[kUnroll];
    Packet before[kUnroll][kParts];
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      const int64 column = first + u * kStep;
      const bool there = column < vector_end;
      grads[u] = there ? load_packet(grad + column) : Packet{{0, 0, 0, 0}};
#pragma unroll
      for (int p = 0; p < kParts; ++p) {
        before[u][p] =
            there && old != nullptr ? load_packet(old + column + p * kPart) : Packet{{0, 0, 0, 0}};
      }
    }
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      const int64 column = first + u * kStep;
      if (column >= vector_end) break;
#pragma unroll
      for (int p = 0; p < kParts; ++p) {
        double totals[kPart];
#pragma unroll
        for (int e = 0; e < kPart; ++e) {
          totals[e] = element<S>(before[u][p], e);
          excess += excess_step<T>(element<T>(grads[u], p * kPart + e), totals[e]);
        }
        store_packet(sums + column + p * kPart, pack<S>(totals));
      }
    }
  }
  for (int64 column = vector_end + thread; column < end; column += kColumnThreads) {
    double total = old != nullptr ? static_cast<double>(old[column]) : 0.0;
    excess += excess_step<T>(widen(grad[column]), total);
    sums[column] = static_cast<S>(total);
  }
  return excess;
}

// The rows [first_row, first_row + num_rows) of every tensor. Bitwise the same from run to run, as the Gramian.
template <class T, class Params>
MTLFAST_DEVICE void excess(const Params& params) {
  typedef typename Squares<T>::Type S;
  constexpr int kWarps = kColumnThreads / kWarp;
  MTLFAST_SHARED(double, totals, kWarps* kExcessRows);
  const Table table(params.table);
  const int num_tasks = params.num_tasks;
  double* own = totals + static_cast<int>(threadIdx.x) / kWarp * params.num_rows;
  const bool leads = threadIdx.x % kWarp == 0;
  if (leads) {
    for (int row = 0; row < params.num_rows; ++row) own[row] = 0.0;
  }

  for_each_chunk(table, params.table.num_chunks, [&](int tensor, int64 begin, int64 end) {
    constexpr int kCount = Vector<T>::kCount;
    const int64 in_packets = table.aligned(tensor) ? (end - begin) / kCount * kCount : 0;
    for (int row = 0; row < params.num_rows; ++row) {
      const int k = params.first_row + row;
      const T* grad = table.pointer<const T>(tensor, k);
      if (grad == nullptr) continue;
      const S* old = table.pointer<const S>(tensor, num_tasks + k);
      S* sums = table.pointer<S>(tensor, 2 * num_tasks + k);
      const double sum = warp_sum(excess_row<T>(grad, old, sums, begin, in_packets, end));
      if (leads) own[row] += sum;
    }
  });

  finish_sums(params.sums, totals, kWarps, params.num_rows, [&](int row, double total) {
    double* out = params.out + params.first_row + row;
    *out = params.accumulate ? *out + total : total;
  });
}

}  // namespace mtlfast
