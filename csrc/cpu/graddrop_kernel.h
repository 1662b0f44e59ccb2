// GradDrop: of every column the positive or the negative entries, by chance in proportion to their sums.
#pragma once

#include "fold_kernel.h"
#include "kernel_table.h"

namespace mtlfast {
namespace {

// Adds up the positive and the negative entries, and with kLeaky what leaks from each side when the other is kept.
template <bool kLeaky>
struct DropFold {
  static constexpr int kSlots = kLeaky ? 4 : 2;

  const DropArgs& args;
  alignas(64) double uniform[kFoldColumns];  // for a short tensor not worth filling with zeros

  explicit DropFold(const DropArgs& call) : args(call) {
    for (int i = 0; i < kLanes; ++i) uniform[i] = 0.0;
  }

  void start(int64_t column, int64_t columns) {
    if (args.uniform != nullptr) {
      __builtin_memcpy(uniform, args.uniform + column,
                       static_cast<uint64_t>(columns) * sizeof(double));
      return;
    }
    // Mixed in 32 bits, which all instruction sets can multiply. Three multiplications, of which the first is an
    // addition from column to column; with one less the numbers of neighbours depend on each other.
    const uint32_t first = static_cast<uint32_t>(args.first_position + column) + args.keys[0];
    const uint32_t count = static_cast<uint32_t>(columns);
    uint32_t spread = first * 0x9E3779B1u;
    for (uint32_t i = 0; i < count; ++i, spread += 0x9E3779B1u) {
      uint32_t x = spread;
      x ^= x >> 15;
      x += args.keys[1];
      x *= 0x7FEB352Du;
      x ^= x >> 16;
      x *= 0x846CA68Bu;
      // An odd multiple of 2^-33: never 0, 1/2 or 1, where a side could tie with its chance.
      uniform[i] = static_cast<int32_t>(x) * 0x1p-32 + (0.5 + 0x1p-33);
    }
  }

  void fold(Vec* sums, Vec value, int row, int position) const {
    const LongVec bits = (LongVec)value;
    const LongVec sign = bits >> 63;
    const Vec positive = (Vec)(bits & ~sign);
    const Vec negative = (Vec)(bits & sign);
    sums[0] = position == 0 ? positive : sums[0] + positive;
    sums[1] = position == 0 ? negative : sums[1] + negative;
    if constexpr (kLeaky) {
      sums[2] += args.leak[row] * positive;
      sums[3] += args.leak[row] * negative;
    }
  }

  Vec finish(const Vec* sums, int64_t lane) const {
    const Vec length = sums[0] - sums[1];
    Vec up = sums[0];
    Vec down = sums[1];
    if constexpr (kLeaky) {
      up += sums[3];
      down += sums[2];
    }
    const Vec kept = sums[0] > load(uniform + lane) * length ? up : down;
    return kept + 0.0 * length;  // NaN where an entry is not finite
  }
};

template <class T>
void drop_rows(const void* const* untyped_rows, int num_rows, const DropArgs& args,
               void* untyped_out, int64_t begin, int64_t end, bool accumulate, bool stream) {
  const T* const* rows = reinterpret_cast<const T* const*>(untyped_rows);
  T* out = static_cast<T*>(untyped_out);
  if (args.leak == nullptr) {
    DropFold<false> fold(args);
    fold_rows(fold, rows, num_rows, out, begin, end, accumulate, stream);
  } else {
    DropFold<true> fold(args);
    fold_rows(fold, rows, num_rows, out, begin, end, accumulate, stream);
  }
}

}  // namespace
}  // namespace mtlfast
