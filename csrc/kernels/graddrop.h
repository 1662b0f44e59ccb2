// GradDrop: of every column the positive or the negative entries, by chance in proportion to their sums. The random
// numbers are those of csrc/cpu/graddrop_kernel.h, bit for bit.
#pragma once

#include "../solvers/random.h"
#include "fold.h"

namespace mtlfast {

constexpr int kNearLeaks = 128;  // in shared memory; more are read from where they are

// Adds up the positive and the negative entries, and with kLeaky what leaks from each side when the other is kept.
template <bool kLeaky>
class DropFold {
 public:
  struct Column {
    double up = 0.0;
    double down = 0.0;
    double leaked_up = 0.0;
    double leaked_down = 0.0;
  };

  MTLFAST_DEVICE DropFold(const double* leak, const int64* rng, int num_tasks)
      : leak_(leak), drawn_(rng != nullptr), num_tasks_(num_tasks) {
    // The first half of random_bits(), which all columns share.
    if (drawn_)
      hash_ = mix_bits(mix_bits(static_cast<uint64>(rng[0])) ^ static_cast<uint64>(rng[1]));
  }

  MTLFAST_DEVICE void start(const Table& table, int tensor, int64 begin, int64 end) {
    const double* chances = table.pointer<const double>(tensor, num_tasks_ + 1);
    if (!drawn_) {
      chances_ = chances;
      return;
    }
    offset_ = reinterpret_cast<int64>(chances) / 16;
    const int64 block = (offset_ + begin) / kBlock;
    change_ = (block + 1) * kBlock - offset_;
    keys_ = keys(block);
    next_keys_ = change_ < end ? keys(block + 1) : keys_;  // no chunk reaches a third block
  }

  template <bool kFirst>
  MTLFAST_DEVICE void add(Column& column, double value, int row, int) const {
    // NaN goes to the negative side.
    if (value > 0.0) {
      column.up += value;
      if (kLeaky) column.leaked_up += leak_[row] * value;
    } else {
      column.down += value;
      if (kLeaky) column.leaked_down += leak_[row] * value;
    }
  }

  MTLFAST_DEVICE double finish(const Column& column, int64 position) const {
    const double length = column.up - column.down;
    const double up = kLeaky ? column.up + column.leaked_down : column.up;
    const double down = kLeaky ? column.down + column.leaked_up : column.down;
    const double kept = column.up > chance(position) * length ? up : down;
    return kept + 0.0 * length;  // NaN where an entry is not finite
  }

 private:
  static constexpr int64 kBlock = 1 << 20;  // columns that share two keys

  MTLFAST_DEVICE uint64 keys(int64 block) const {
    return mix_bits(mix_bits(hash_ ^ static_cast<uint64>(block)));
  }

  MTLFAST_DEVICE double chance(int64 position) const {
    if (!drawn_) return chances_[position];
    const uint64 keys = position < change_ ? keys_ : next_keys_;
    uint32 x = (static_cast<uint32>(offset_ + position) % static_cast<uint32>(kBlock) +
                static_cast<uint32>(keys)) *
               0x9E3779B1u;
    x ^= x >> 15;
    x += static_cast<uint32>(keys >> 32);
    x *= 0x7FEB352Du;
    x ^= x >> 16;
    x *= 0x846CA68Bu;
    // An odd multiple of 2^-33: never 0, 1/2 or 1, where a side could tie with its chance.
    return static_cast<int>(x) * 2.3283064365386963e-10 + (0.5 + 1.1641532182693481e-10);
  }

  const double* leak_;
  const double* chances_ = nullptr;  // of the tensor's columns, where they are given
  uint64 keys_ = 0;
  uint64 next_keys_ = 0;
  uint64 hash_ = 0;
  int64 offset_ = 0;  // columns before the tensor
  int64 change_ = 0;  // the first column under next_keys_
  bool drawn_;
  int num_tasks_;
};

template <class T, bool kLeaky, class Params>
MTLFAST_DEVICE void graddrop(const Params& params) {
  const double* leak = params.leak;
  if constexpr (kLeaky) {
    MTLFAST_SHARED(double, near_leaks, kNearLeaks);
    if (params.num_tasks <= kNearLeaks) {
      for (int k = static_cast<int>(threadIdx.x); k < params.num_tasks; k += kColumnThreads) {
        near_leaks[k] = leak[k];
      }
      __syncthreads();
      leak = near_leaks;
    }
  }
  DropFold<kLeaky> fold(leak, params.rng, params.num_tasks);
  fold_table<T>(params, fold);
}

// The next call draws other numbers.
MTLFAST_DEVICE void advance(const AdvanceParams& params) {
  if (threadIdx.x == 0) ++params.rng[1];
}

}  // namespace mtlfast
