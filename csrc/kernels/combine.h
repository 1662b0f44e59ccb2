// out = sum_k weights[k] rows[k], in float64: one read of every row, one write.
#pragma once

#include "element.h"
#include "table.h"

namespace mtlfast {

// A row whose weight is 0 is not read, so that its NaN or Inf does not come through. Rows are read four at a time: all
// loads of a group are under way before the first is used.
template <class T, class Params>
MTLFAST_DEVICE void combine(const Params& params) {
  constexpr int kCount = Vector<T>::kCount;
  constexpr int kRows = 4;
  constexpr int64 kStep = static_cast<int64>(kCombineThreads) * kCount;
  MTLFAST_SHARED(double, near_weights, kNearWeights);
  const Table table(params.table);
  const int num_tasks = params.num_tasks;
  for (int k = static_cast<int>(threadIdx.x); k < num_tasks && k < kNearWeights;
       k += kCombineThreads) {
    near_weights[k] = params.weights[k];
  }
  __syncthreads();
  const double* weight_of = num_tasks <= kNearWeights ? near_weights : params.weights;

  for_each_chunk(table, params.table.num_chunks, [&](int tensor, int64 begin, int64 end) {
    T* out = table.pointer<T>(tensor, num_tasks);
    if (out == nullptr) return;
    const int64 thread = threadIdx.x;
    const int64 vector_end = begin + (table.aligned(tensor) ? (end - begin) / kCount * kCount : 0);

    for (int64 column = begin + thread * kCount; column < vector_end; column += kStep) {
      double sums[kCount];
#pragma unroll
      for (int e = 0; e < kCount; ++e) sums[e] = 0.0;
      for (int first = 0; first < num_tasks; first += kRows) {
        Packet packets[kRows];
        double weights[kRows];
#pragma unroll
        for (int r = 0; r < kRows; ++r) {
          const bool there = first + r < num_tasks;
          const T* row = there ? table.pointer<const T>(tensor, first + r) : nullptr;
          weights[r] = there ? weight_of[first + r] : 0.0;
          const bool read = row != nullptr && weights[r] != 0.0;
          packets[r] = read ? load_packet(row + column) : Packet{{0, 0, 0, 0}};
          if (row == nullptr) weights[r] = 0.0;
        }
#pragma unroll
        for (int r = 0; r < kRows; ++r) {
#pragma unroll
          for (int e = 0; e < kCount; ++e) {
            sums[e] += weights[r] * static_cast<double>(element<T>(packets[r], e));
          }
        }
      }
      if (params.accumulate) {
        const Packet before = load_packet(out + column);
#pragma unroll
        for (int e = 0; e < kCount; ++e) sums[e] += element<T>(before, e);
      }
      store_packet(out + column, pack<T>(sums));
    }
    for (int64 column = vector_end + thread; column < end; column += kCombineThreads) {
      double sum = 0.0;
      for (int k = 0; k < num_tasks; ++k) {
        const T* row = table.pointer<const T>(tensor, k);
        const double weight = weight_of[k];
        if (row != nullptr && weight != 0.0)
          sum += weight * static_cast<double>(widen(row[column]));
      }
      if (params.accumulate) sum += widen(out[column]);
      out[column] = narrow<T>(sum);
    }
  });
}

}  // namespace mtlfast
