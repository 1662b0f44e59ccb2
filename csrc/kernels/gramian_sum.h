// How the blocks of one launch add up their float64 sums, in a fixed order and without a second launch.
#pragma once

#include "params.h"
#include "target.h"

namespace mtlfast {

// Adds `value` over the lanes of a warp, in float64.
template <class Sum>
MTLFAST_DEVICE double warp_sum(Sum value) {
  return Lanes::warp().sum(static_cast<double>(value));
}

// Whether this block is the last one to come here of `count` that share a ticket. All threads call it; what any thread
// of any of these blocks wrote before is then visible to the block.
MTLFAST_DEVICE bool comes_last(uint32* ticket, uint32 count) {
  MTLFAST_SHARED(uint32, last, 1);
  __threadfence();
  __syncthreads();
  // The counter wraps around to zero by itself, so that the next launch needs nobody to clear it.
  if (threadIdx.x == 0) last[0] = atomicInc(ticket, count - 1) == count - 1 ? 1u : 0u;
  __syncthreads();
  const bool is_last = last[0] != 0;
  if (is_last) __threadfence();
  return is_last;
}

// `totals`: [num_parts, num_sums] in shared memory, this block's parts of each sum. The last block calls place(sum,
// total) once for each, by one thread.
template <class Place>
MTLFAST_DEVICE void finish_sums(const SumParams& params, const double* totals, int num_parts,
                                int num_sums, Place place) {
  const int threads = static_cast<int>(blockDim.x);
  const int thread = static_cast<int>(threadIdx.x);
  const int64 blocks = gridDim.x;
  __syncthreads();
  for (int sum = thread; sum < num_sums; sum += threads) {
    double total = 0.0;
    for (int part = 0; part < num_parts; ++part) total += totals[part * num_sums + sum];
    params.partials[sum * blocks + blockIdx.x] = total;
  }
  if (!comes_last(params.ticket, gridDim.x)) return;
  for (int sum = thread / kWarp; sum < num_sums; sum += threads / kWarp) {
    // Volatile: written by other blocks during this launch, which the L1 cache need not know.
    const volatile double* partials = params.partials + sum * blocks;
    double total = 0.0;
    for (int64 block = thread % kWarp; block < blocks; block += kWarp) total += partials[block];
    total = warp_sum(total);
    if (thread % kWarp == 0) place(sum, total);
  }
}

}  // namespace mtlfast
