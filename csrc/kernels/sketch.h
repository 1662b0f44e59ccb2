// Folds gradients into a sketch, with random signs, and adds up their squares.
//
// A thread has one bucket and walks through its elements of all tensors in the order of their numbers: no atomics, and
// the same bits as on the CPU. The lanes of a warp have 32 buckets in a row, so they share each hash, which each of them
// computes for another turn around the sketch.
#pragma once

#include "element.h"
#include "gramian_sum.h"
#include "signs.h"
#include "table.h"

namespace mtlfast {

// What a thread has added up so far.
struct SketchSums {
  float bucket;
  double squares;
};

// The elements of one tensor, numbered from `first` on. `bucket`: of the warp's first lane.
template <class T>
MTLFAST_DEVICE void sketch_tensor(const T* grad, int64 size, int64 first, uint64 key, int64 bucket,
                                  int log_buckets, SketchSums& sums) {
  constexpr int kLoads = 8;  // under way at once
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int64 wrap = (1ll << log_buckets) - 1;
  // The turns in which the tensor has an element for any lane.
  const int64 end = (first + size - bucket + wrap) >> log_buckets;
  for (int64 turn = (first - bucket - (kWarp - 1) + wrap) >> log_buckets; turn < end;
       turn += kWarp) {
    const int64 number = ((turn + lane) << log_buckets) + bucket;
    const uint64 hash = sign_bits(key, static_cast<uint64>(number / kSignsPerHash));
    const uint32 own = static_cast<uint32>(hash >> (number % kSignsPerHash));
    for (int step = 0; step < kWarp && turn + step < end; step += kLoads) {
      T values[kLoads];
#pragma unroll
      for (int i = 0; i < kLoads; ++i) {
        const int64 at = ((turn + step + i) << log_buckets) + bucket + lane - first;
        values[i] = at >= 0 && at < size ? grad[at] : T{};
      }
#pragma unroll
      for (int i = 0; i < kLoads; ++i) {
        const uint32 signs = __shfl_sync(kAllLanes, own, step + i);
        const double wide = widen(values[i]);
        const float value = static_cast<float>(widen(values[i]));
        sums.squares += wide * wide;
        sums.bucket += (signs >> lane & 1u) != 0 ? -value : value;
      }
    }
  }
}

// Block b has the buckets [b kSketchThreads, (b + 1) kSketchThreads).
template <class Params>
MTLFAST_DEVICE void sketch(const Params& params) {
  MTLFAST_SHARED(double, totals, kSketchThreads / kWarp);
  const Table table(params.table);
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int64 bucket = static_cast<int64>(blockIdx.x) * kSketchThreads + warp * kWarp;
  SketchSums sums = {params.sketch[bucket + lane], 0.0};
  const auto fold = [&](const auto* grad, int tensor, int64 first) {
    sketch_tensor(grad, table.size(tensor), first, params.key, bucket, params.log_buckets, sums);
  };
  for (int tensor = 0; tensor < params.table.layout.num_tensors; ++tensor) {
    const int64 code = reinterpret_cast<int64>(table.pointer<const void>(tensor, 1));
    const int64 first = code / kSketchTypes;
    switch (static_cast<int>(code % kSketchTypes)) {
      case kSketchFloat: fold(table.pointer<const float>(tensor, 0), tensor, first); break;
      case kSketchDouble: fold(table.pointer<const double>(tensor, 0), tensor, first); break;
      case kSketchBFloat16: fold(table.pointer<const BFloat16>(tensor, 0), tensor, first); break;
      default: fold(table.pointer<const Float16>(tensor, 0), tensor, first);
    }
  }
  params.sketch[bucket + lane] = sums.bucket;
  const double squares = warp_sum(sums.squares);
  if (lane == 0) totals[warp] = squares;
  finish_sums(params.sums, totals, kSketchThreads / kWarp, 1,
              [&](int, double total) { *params.norm += total; });
}

}  // namespace mtlfast
