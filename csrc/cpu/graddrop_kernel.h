// GradDrop: of every column the positive or the negative entries, by chance in proportion to their sums.
#pragma once

#include "fold_kernel.h"
#include "kernel_table.h"

namespace mtlfast {
namespace {

// Adds up the positive and the negative entries, and with kLeaky what leaks from each side when the other is kept.
// A NaN counts as either, so that it reaches the result.
template <bool kLeaky>
struct DropFold {
  static constexpr int kSlots = kLeaky ? 4 : 2;

  const DropArgs& args;
  alignas(64) double uniform[kFoldColumns + kLanes];

  void start(int64_t column, int64_t columns) {
    if (args.uniform != nullptr) {
      __builtin_memcpy(uniform, args.uniform + column,
                       static_cast<uint64_t>(columns) * sizeof(double));
      return;
    }
    // Mixed in 32 bits, which all instruction sets can multiply.
    const uint32_t first = static_cast<uint32_t>(args.first_position + column);
    for (int64_t i = 0; i < columns; ++i) {
      uint32_t x = (first + static_cast<uint32_t>(i)) ^ args.keys[0];
      x ^= x >> 16;
      x *= 0x7FEB352Du;
      x += args.keys[1];
      x ^= x >> 15;
      x *= 0x846CA68Bu;
      x ^= x >> 16;
      // An odd multiple of 2^-32: never 0, 1/2 or 1, where a side could tie with its chance.
      uniform[i] = static_cast<int32_t>(x >> 1) * 0x1p-31 + 0x1p-32;
    }
  }

  void fold(Vec* sums, Vec value, int row, int) const {
    const Vec positive = greater(Vec{}, value);
    const Vec negative = lesser(Vec{}, value);
    sums[0] += positive;
    sums[1] += negative;
    if constexpr (kLeaky) {
      sums[2] += args.leak[row] * positive;
      sums[3] += args.leak[row] * negative;
    }
  }

  Vec finish(const Vec* sums, int64_t lane) const {
    const Vec length = sums[0] - sums[1];
    const Vec limit = load(uniform + lane) * length;
    Vec kept;
    if constexpr (kLeaky) {
      kept = sums[0] < limit ? sums[2] + sums[1] : sums[2] + sums[3];
      kept = sums[0] > limit ? sums[0] + sums[3] : kept;
    } else {
      kept = sums[0] < limit ? sums[1] : Vec{};
      kept = sums[0] > limit ? sums[0] : kept;
    }
    // Where an entry is not finite neither is the result.
    return length < Vec{} + __builtin_inf() ? kept : sums[0] + sums[1];
  }
};

template <class T>
void drop_rows(const void* const* untyped_rows, int num_rows, const DropArgs& args,
               void* untyped_out, int64_t begin, int64_t end, bool accumulate, bool stream) {
  const T* const* rows = reinterpret_cast<const T* const*>(untyped_rows);
  T* out = static_cast<T*>(untyped_out);
  if (args.leak == nullptr) {
    DropFold<false> fold{args, {}};
    fold_rows(fold, rows, num_rows, out, begin, end, accumulate, stream);
  } else {
    DropFold<true> fold{args, {}};
    fold_rows(fold, rows, num_rows, out, begin, end, accumulate, stream);
  }
}

}  // namespace
}  // namespace mtlfast
