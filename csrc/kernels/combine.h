// out = sum_k weights[k] rows[k], in float64: one read of every row, one write.
#pragma once

#include "weighted_sum.h"

namespace mtlfast {

template <class T, class Params>
MTLFAST_DEVICE void combine(const Params& params) {
  constexpr int kCount = Vector<T>::kCount;
  constexpr int64 kStep = static_cast<int64>(kCombineThreads) * kCount;
  MTLFAST_SHARED(double, near_weights, kNearWeights);
  const Table table(params.table);
  const int num_tasks = params.num_tasks;
  const double* weights = bring_near(params.weights, num_tasks, near_weights);
  __syncthreads();

  for_each_chunk(table, params.table.num_chunks, [&](int tensor, int64 begin, int64 end) {
    T* out = table.pointer<T>(tensor, num_tasks);
    if (out == nullptr) return;
    const int64 thread = threadIdx.x;
    const int64 vector_end = begin + (table.aligned(tensor) ? (end - begin) / kCount * kCount : 0);

    for (int64 column = begin + thread * kCount; column < vector_end; column += kStep) {
      double sums[kCount];
      weighted_sums<kCount, T>(table, tensor, num_tasks, weights, column, sums);
      if (params.accumulate) {
        const Packet before = load_packet(out + column);
#pragma unroll
        for (int e = 0; e < kCount; ++e) sums[e] += element<T>(before, e);
      }
      store_packet(out + column, pack<T>(sums));
    }
    for (int64 column = vector_end + thread; column < end; column += kCombineThreads) {
      double sum;
      weighted_sums<1, T>(table, tensor, num_tasks, weights, column, &sum);
      if (params.accumulate) sum += widen(out[column]);
      out[column] = narrow<T>(sum);
    }
  });
}

}  // namespace mtlfast
