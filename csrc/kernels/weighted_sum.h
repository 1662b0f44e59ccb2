// sum_k weights[k] rows[k] over a few columns of a tensor, in float64: what combine and the fused step begin with.
#pragma once

#include "element.h"
#include "table.h"

namespace mtlfast {

// Where the weights are read from: `near` [kNearWeights] in shared memory, where all of them fit there. All threads of
// the block call it, and a barrier has to follow.
MTLFAST_DEVICE const double* bring_near(const double* weights, int num_tasks, double* near) {
  if (num_tasks > kNearWeights) return weights;
  for (int k = static_cast<int>(threadIdx.x); k < num_tasks; k += static_cast<int>(blockDim.x)) {
    near[k] = weights[k];
  }
  return near;
}

// The sums over kWidth columns: a packet, or a single one. A row whose weight is 0 is not read, so that its NaN or Inf
// does not come through. Rows are read four at a time: all loads of a group are under way before the first is used.
template <int kWidth, class T>
MTLFAST_DEVICE void weighted_sums(const Table& table, int tensor, int num_tasks,
                                  const double* weights, int64 column, double* sums) {
  constexpr int kRows = 4;
#pragma unroll
  for (int e = 0; e < kWidth; ++e) sums[e] = 0.0;
  for (int first = 0; first < num_tasks; first += kRows) {
    Packet packets[kRows];
    double factors[kRows];
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      const T* row = first + r < num_tasks ? table.pointer<const T>(tensor, first + r) : nullptr;
      factors[r] = row != nullptr ? weights[first + r] : 0.0;
      packets[r] = {{0, 0, 0, 0}};
      if (factors[r] != 0.0) {
        packets[r] = kWidth == 1 ? load_single(row + column) : load_packet(row + column);
      }
    }
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
#pragma unroll
      for (int e = 0; e < kWidth; ++e) {
        sums[e] += factors[r] * static_cast<double>(element<T>(packets[r], e));
      }
    }
  }
}

}  // namespace mtlfast
