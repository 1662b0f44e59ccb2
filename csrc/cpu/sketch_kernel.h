// Folds a gradient into the buckets of a sketch, with random signs, and returns its sum of squares.
#pragma once

#include "../kernels/signs.h"
#include "simd.h"

namespace mtlfast {
namespace {

inline FloatVec as_float(const float* source) { return load_float(source); }
inline FloatVec as_float(const bfloat16* source) { return load_float(source); }
inline FloatVec as_float(const float16* source) { return load_float(source); }
inline FloatVec as_float(const double* source) { return narrow(load(source)); }

// Flips the sign of lane l where bit number from + l of `bits` is set; every lane of `bits` is the same word.
template <int kFrom>
inline FloatVec flip(FloatVec value, WordVec bits) {
  WordVec places;
#if defined(MTLFAST_ISA_avx512) || defined(MTLFAST_ISA_avx2)
  for (int lane = 0; lane < kLanes; ++lane) places[lane] = static_cast<uint32_t>(31 - kFrom - lane);
  const WordVec signs = (bits << places) & 0x80000000u;
#else
  // Without a shift that differs between lanes.
  for (int lane = 0; lane < kLanes; ++lane) places[lane] = 1u << (kFrom + lane);
  const WordVec signs = (WordVec)((bits & places) == places) & 0x80000000u;
#endif
  const WordVec flipped = load_unaligned<WordVec>(&value) ^ signs;
  return load_unaligned<FloatVec>(&flipped);
}

// The elements of half a hash from number kFrom on; `buckets` are theirs.
template <int kFrom, class T>
inline void sketch_word(const T* source, WordVec bits, float* buckets, Vec* squares) {
  if constexpr (kFrom < 32) {
    const Vec wide = load(source + kFrom);
    squares[kFrom / kLanes % 4] += wide * wide;
    float* bucket = buckets + kFrom;
    store_unaligned(bucket,
                    load_unaligned<FloatVec>(bucket) + flip<kFrom>(as_float(source + kFrom), bits));
    sketch_word<kFrom + kLanes>(source, bits, buckets, squares);
  }
}

template <class T>
inline void sketch_group(const T* source, uint64_t signs, float* buckets, Vec* squares) {
  sketch_word<0>(source, WordVec{} + static_cast<uint32_t>(signs), buckets, squares);
  sketch_word<0>(source + 32, WordVec{} + static_cast<uint32_t>(signs >> 32), buckets + 32,
                 squares);
}

// The elements [from, to) of a hash, of which the first is at `source`; zeros stand for the others.
template <class T>
__attribute__((noinline)) void sketch_part(const T* source, int64_t from, int64_t to,
                                           uint64_t signs, float* buckets, Vec* squares) {
  T padded[kSignsPerHash] = {};
  __builtin_memcpy(padded + from, source, static_cast<uint64_t>(to - from) * sizeof(T));
  sketch_group(padded, signs, buckets, squares);
}

// The elements [number, stop), the first of which is at `source` and belongs to the first of `buckets`. Returns the sum
// of their squares.
template <class T>
inline double sketch_run(const T* source, int64_t number, int64_t stop, uint64_t key,
                         float* buckets) {
  constexpr int64_t kGroup = kSignsPerHash;
  constexpr int64_t kAhead = prefetch_bytes(1) / static_cast<int64_t>(sizeof(T));
  const auto signs = [key](int64_t of) {
    return sign_bits(key, static_cast<uint64_t>(of) / kSignsPerHash);
  };
  Vec squares[4] = {};
  int64_t count = stop - number;
  if (const int64_t from = number % kGroup; from != 0 || count < kGroup) {
    const int64_t to = from + count < kGroup ? from + count : kGroup;
    sketch_part(source, from, to, signs(number), buckets - from, squares);
    source += to - from;
    buckets += to - from;
    number += to - from;
    count -= to - from;
  }
  for (; count >= kGroup; count -= kGroup) {
#pragma GCC unroll 8
    for (int64_t i = 0; i < kGroup; i += 64 / static_cast<int64_t>(sizeof(T)))
      __builtin_prefetch(source + kAhead + i, 0, 3);
    sketch_group(source, signs(number), buckets, squares);
    source += kGroup;
    buckets += kGroup;
    number += kGroup;
  }
  if (count > 0) sketch_part(source, 0, count, signs(number), buckets, squares);
  return sum_lanes((squares[0] + squares[1]) + (squares[2] + squares[3]));
}

// See KernelTable. A bucket takes its elements in the order of their numbers, each in float32.
template <class T>
void sketch_range(const void* untyped, int64_t size, int64_t first, uint64_t key, float* sketch,
                  int64_t num_buckets, int64_t begin, int64_t end, int64_t block, double* norms) {
  const T* grad = static_cast<const T*>(untyped);
  const auto lesser = [](int64_t a, int64_t b) { return a < b ? a : b; };
  const int64_t past = first + size;
  // The sketch's first bucket has the number `turn`, in one turn around it after another.
  for (int64_t turn = first & ~(num_buckets - 1); turn < past; turn += num_buckets) {
    int64_t number = turn + begin > first ? turn + begin : first;
    const int64_t stop = lesser(turn + end, past);
    while (number < stop) {
      const int64_t which = (number - turn) / block;
      const int64_t next = lesser(stop, turn + (which + 1) * block);
      norms[which] +=
          sketch_run(grad + (number - first), number, next, key, sketch + (number - turn));
      number = next;
    }
  }
}

}  // namespace
}  // namespace mtlfast
