// Counter-based random numbers: the same on the host, on the device and in Python.
#pragma once

#include "mix.h"
#include "solver.h"

namespace mtlfast {

// A hash of (seed, counter, row, position), uniform over 64 bits.
MTLFAST_HD uint64 random_bits(const int64* rng, int row, int position) {
  uint64 hash = mix_bits(static_cast<uint64>(rng[0]));
  hash = mix_bits(hash ^ static_cast<uint64>(rng[1]));
  hash = mix_bits(hash ^ static_cast<uint64>(row));
  return mix_bits(hash ^ static_cast<uint64>(position));
}

// Uniform over the 2^53 multiples of 2^-53 in (0, 1], own to (rng, row, position).
MTLFAST_HD double draw_uniform(const int64* rng, int row, int position) {
  const uint64 steps = (random_bits(rng, row, position) >> 11) + 1;
  return static_cast<double>(steps) * 1.1102230246251565e-16;
}

// Standard normal after Box and Muller, own to (rng, position).
MTLFAST_HD double draw_normal(const int64* rng, int position) {
  const double radius = sqrt(-2.0 * log(draw_uniform(rng, 0, position)));
  return radius * cos(6.283185307179586 * draw_uniform(rng, 1, position));
}

// Fisher-Yates: `order`, its entries `stride` apart, becomes a permutation of 0 .. count-1, own to
// (rng, row). Drawing from the top 32 bits is biased by less than count / 2^32.
MTLFAST_HD void draw_order(const int64* rng, int row, int count, int* order, int stride = 1) {
  for (int i = 0; i < count; ++i) order[i * stride] = i;
  for (int i = count - 1; i > 0; --i) {
    const uint64 bound = static_cast<uint64>(i) + 1;
    const int other = static_cast<int>(((random_bits(rng, row, i) >> 32) * bound) >> 32);
    const int kept = order[i * stride];
    order[i * stride] = order[other * stride];
    order[other * stride] = kept;
  }
}

}  // namespace mtlfast
