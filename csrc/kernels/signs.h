// The random signs of a sketch: the same on the host, on the device and in Python.
//
// Elements are numbered through all columns, and 64 that follow one another, from a multiple of 64 on, share a hash: bit
// e % 64 of sign_bits(sign_key(seed), e / 64) says whether element e is subtracted. The hashes of a seed are the
// splitmix64 sequence from the state sign_key(seed) on: elements of one bucket take bits of different terms, and the
// sequences of two seeds start at places of the one cycle of 2^64 terms that have nothing to do with each other.
#pragma once

#include "../solvers/mix.h"

namespace mtlfast {

constexpr int kSignsPerHash = 64;
constexpr int64 kLeastBuckets = 1024;  // of a sketch, and a power of two

MTLFAST_HD uint64 sign_key(int64 seed) { return mix_bits(static_cast<uint64>(seed)); }

MTLFAST_HD uint64 sign_bits(uint64 key, uint64 group) {
  return mix_bits(key + group * 0x9E3779B97F4A7C15ULL);
}

}  // namespace mtlfast
