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

// Of `size` elements, numbered from `first` on, those that fall into the buckets [begin, end) of num_buckets; both are
// multiples of kSignsPerHash. A bucket takes its elements in the order of their numbers, each in float32.
template <class T>
double sketch_range(const void* untyped, int64_t size, int64_t first, uint64_t key, float* sketch,
                    int64_t num_buckets, int64_t begin, int64_t end) {
  constexpr int64_t kGroup = kSignsPerHash;
  const T* grad = static_cast<const T*>(untyped);
  const auto signs = [key](int64_t number) {
    return sign_bits(key, static_cast<uint64_t>(number) / kSignsPerHash);
  };
  Vec squares[4] = {};
  // The sketch's first bucket has the number `turn`, in one turn around it after another.
  for (int64_t turn = first & ~(num_buckets - 1); turn < first + size; turn += num_buckets) {
    int64_t number = turn + begin > first ? turn + begin : first;
    const int64_t stop = turn + end < first + size ? turn + end : first + size;
    if (number >= stop) continue;
    if (const int64_t from = number % kGroup; from != 0 || stop - number < kGroup) {
      const int64_t to = from + stop - number < kGroup ? from + stop - number : kGroup;
      sketch_part(grad + (number - first), from, to, signs(number), sketch + (number - from - turn),
                  squares);
      number += to - from;
    }
    for (; stop - number >= kGroup; number += kGroup) {
      // What these buckets take next lies one turn ahead.
      const char* next = reinterpret_cast<const char*>(grad + (number - first) + num_buckets);
#pragma GCC unroll 8
      for (uint64_t byte = 0; byte < kGroup * sizeof(T); byte += 64)
        __builtin_prefetch(next + byte, 0, 3);
      sketch_group(grad + (number - first), signs(number), sketch + (number - turn), squares);
    }
    if (number < stop)
      sketch_part(grad + (number - first), 0, stop - number, signs(number),
                  sketch + (number - turn), squares);
  }
  return sum_lanes((squares[0] + squares[1]) + (squares[2] + squares[3]));
}

}  // namespace
}  // namespace mtlfast
