// The mixing step behind all random numbers here.
#pragma once

#include "lanes.h"

namespace mtlfast {

// The splitmix64 step: adds the golden-ratio increment, then mixes all bits.
MTLFAST_HD uint64 mix_bits(uint64 x) {
  x += 0x9E3779B97F4A7C15ULL;
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9ULL;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EBULL;
  return x ^ (x >> 31);
}

}  // namespace mtlfast
