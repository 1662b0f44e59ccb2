// Vectors of float64 lanes for the instruction set this unit is compiled for, and their loads and stores
// from the four element types. GCC and Clang vector extensions carry the arithmetic; intrinsics appear
// only where there is no portable spelling.
#pragma once

#include <stdint.h>

// Vectors never cross a unit's boundary, so how the ABI would pass them does not matter.
#pragma GCC diagnostic ignored "-Wpsabi"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace mtlfast {
namespace {

#if defined(MTLFAST_ISA_avx512)
constexpr int kLanes = 8;
#elif defined(MTLFAST_ISA_avx2)
constexpr int kLanes = 4;
#else
constexpr int kLanes = 2;
#endif

// How far ahead of the loads a row is fetched. The hardware prefetchers start anew on every page and late where
// there are several streams; few rows can be fetched pages ahead, many would push each other out of the cache.
constexpr int prefetch_bytes(int rows) { return rows <= 4 ? 8192 : 2048; }

struct bfloat16 {
  uint16_t bits;
};
struct float16 {
  uint16_t bits;
};

typedef double Vec __attribute__((vector_size(kLanes * 8)));
typedef int64_t LongVec __attribute__((vector_size(kLanes * 8)));
typedef float FloatVec __attribute__((vector_size(kLanes * 4)));
typedef uint32_t WordVec __attribute__((vector_size(kLanes * 4)));
typedef uint16_t HalfVec __attribute__((vector_size(kLanes * 2)));

template <class V>
inline V load_unaligned(const void* source) {
  V value;
  __builtin_memcpy(&value, source, sizeof(V));
  return value;
}

template <class V>
inline void store_unaligned(void* target, V value) {
  __builtin_memcpy(target, &value, sizeof(V));
}

// GCC converts a vector to a wider one in halves, which it then joins: three instructions too many. The
// intrinsics with a mask (of all lanes) because GCC 12 warns of the others' unset operand.
inline Vec widen(FloatVec value) {
#if defined(MTLFAST_ISA_avx512)
  return (Vec)_mm512_maskz_cvtps_pd(0xff, (__m256)value);
#elif defined(MTLFAST_ISA_avx2)
  return (Vec)_mm256_cvtps_pd((__m128)value);
#elif defined(__x86_64__)
  return (Vec)_mm_cvtps_pd((__m128)_mm_cvtsi64_si128(load_unaligned<int64_t>(&value)));
#else
  return __builtin_convertvector(value, Vec);
#endif
}
inline WordVec widen(HalfVec value) {
#if defined(MTLFAST_ISA_avx512)
  return (WordVec)_mm256_cvtepu16_epi32((__m128i)value);
#elif defined(MTLFAST_ISA_avx2)
  return (WordVec)_mm_cvtepu16_epi32(_mm_cvtsi64_si128(load_unaligned<int64_t>(&value)));
#else
  return __builtin_convertvector(value, WordVec);
#endif
}
inline FloatVec narrow(Vec value) { return __builtin_convertvector(value, FloatVec); }

// a < b ? a : b, and so on: where either is NaN it is b. GCC would compare and blend.
inline Vec lesser(Vec a, Vec b) {
#if defined(MTLFAST_ISA_avx512)
  return (Vec)_mm512_maskz_min_pd(0xff, (__m512d)a, (__m512d)b);
#elif defined(MTLFAST_ISA_avx2)
  return (Vec)_mm256_min_pd((__m256d)a, (__m256d)b);
#elif defined(__x86_64__)
  return (Vec)_mm_min_pd((__m128d)a, (__m128d)b);
#else
  return a < b ? a : b;
#endif
}
inline Vec greater(Vec a, Vec b) {
#if defined(MTLFAST_ISA_avx512)
  return (Vec)_mm512_maskz_max_pd(0xff, (__m512d)a, (__m512d)b);
#elif defined(MTLFAST_ISA_avx2)
  return (Vec)_mm256_max_pd((__m256d)a, (__m256d)b);
#elif defined(__x86_64__)
  return (Vec)_mm_max_pd((__m128d)a, (__m128d)b);
#else
  return a > b ? a : b;
#endif
}

inline Vec square_root(Vec value) {
#if defined(MTLFAST_ISA_avx512)
  return (Vec)_mm512_maskz_sqrt_pd(0xff, (__m512d)value);
#elif defined(MTLFAST_ISA_avx2)
  return (Vec)_mm256_sqrt_pd((__m256d)value);
#else
  for (int i = 0; i < kLanes; ++i) value[i] = __builtin_sqrt(value[i]);
  return value;
#endif
}

// ---- half precision, in integer arithmetic where the CPU has no conversion ------------------------------

inline FloatVec half_to_float(HalfVec half) {
#if defined(MTLFAST_ISA_avx512)
  return (FloatVec)_mm256_cvtph_ps((__m128i)half);
#elif defined(MTLFAST_ISA_avx2)
  __m128i low = _mm_cvtsi64_si128(load_unaligned<int64_t>(&half));
  return (FloatVec)_mm_cvtph_ps(low);
#else
  const WordVec word = widen(half);
  const WordVec magnitude = word & 0x7fffu;
  // Shifted into the float's fields the exponent is short by 127 - 15 = 112; the product is exact.
  const WordVec shifted = magnitude << 13;
  const FloatVec scaled = load_unaligned<FloatVec>(&shifted) * 0x1p112f;
  WordVec bits = load_unaligned<WordVec>(&scaled);
  bits = (magnitude >= 0x7c00u) ? (bits | 0x7f800000u) : bits;
  bits |= (word & 0x8000u) << 16;
  return load_unaligned<FloatVec>(&bits);
#endif
}

inline HalfVec float_to_half(FloatVec value) {
#if defined(MTLFAST_ISA_avx512)
  return (HalfVec)_mm256_cvtps_ph((__m256)value, _MM_FROUND_TO_NEAREST_INT);
#elif defined(MTLFAST_ISA_avx2)
  const int64_t low = _mm_cvtsi128_si64(_mm_cvtps_ph((__m128)value, _MM_FROUND_TO_NEAREST_INT));
  return load_unaligned<HalfVec>(&low);
#else
  const WordVec word = load_unaligned<WordVec>(&value);
  const WordVec magnitude = word & 0x7fffffffu;
  // Normal: round the 13 dropped bits to nearest even, then move the exponent down by 112.
  const WordVec normal = ((magnitude + 0xfffu + ((magnitude >> 13) & 1u)) >> 13) - (112u << 10);
  // Subnormal: adding 0.5 makes the float's last place 2^-24, the half's smallest step.
  const FloatVec shifted = load_unaligned<FloatVec>(&magnitude) + 0.5f;
  const WordVec subnormal = load_unaligned<WordVec>(&shifted) - 0x3f000000u;
  WordVec result = (magnitude < 0x38800000u) ? subnormal : normal;
  result = (magnitude >= 0x477ff000u) ? (WordVec{} + 0x7c00u)
                                      : result;  // 65520 and above round to infinity
  result = (magnitude > 0x7f800000u) ? (WordVec{} + 0x7e00u) : result;  // NaN
  result |= (word >> 16) & 0x8000u;
  return __builtin_convertvector(result, HalfVec);
#endif
}

inline HalfVec float_to_bfloat(FloatVec value) {
  const WordVec word = load_unaligned<WordVec>(&value);
  const WordVec rounded = (word + 0x7fffu + ((word >> 16) & 1u)) >> 16;
  const WordVec nan = (word >> 16) | 0x40u;
  const WordVec result = ((word & 0x7fffffffu) > 0x7f800000u) ? nan : rounded;
  return __builtin_convertvector(result, HalfVec);
}

// ---- kLanes elements of any type ------------------------------------------------------------------------

inline FloatVec load_float(const float* source) { return load_unaligned<FloatVec>(source); }
inline FloatVec load_float(const bfloat16* source) {
  const WordVec word = widen(load_unaligned<HalfVec>(source)) << 16;
  return load_unaligned<FloatVec>(&word);
}
inline FloatVec load_float(const float16* source) {
  return half_to_float(load_unaligned<HalfVec>(source));
}

inline Vec load(const double* source) { return load_unaligned<Vec>(source); }
template <class T>
inline Vec load(const T* source) {
  return widen(load_float(source));
}

// The last count < kLanes elements; the lanes beyond them are zero.
template <class T>
inline Vec load_partial(const T* source, int64_t count) {
  T padded[kLanes] = {};
  __builtin_memcpy(padded, source, static_cast<uint64_t>(count) * sizeof(T));
  return load(padded);
}

inline void store(double* target, Vec value) { store_unaligned(target, value); }
inline void store(float* target, Vec value) { store_unaligned(target, narrow(value)); }
inline void store(bfloat16* target, Vec value) {
  store_unaligned(target, float_to_bfloat(narrow(value)));
}
inline void store(float16* target, Vec value) {
  store_unaligned(target, float_to_half(narrow(value)));
}

template <class T>
inline void store_partial(T* target, Vec value, int64_t count) {
  T padded[kLanes];
  store(padded, value);
  __builtin_memcpy(target, padded, static_cast<uint64_t>(count) * sizeof(T));
}

// ---- stores past the cache: target aligned to the vector's width ----------------------------------------

template <class V>
inline void stream_bytes(void* target, V value) {
#if defined(MTLFAST_ISA_avx512) || defined(MTLFAST_ISA_avx2)
  if constexpr (sizeof(V) == 32) {
    _mm256_stream_si256(static_cast<__m256i*>(target), (__m256i)value);
    return;
  }
#endif
#if defined(MTLFAST_ISA_avx512)
  if constexpr (sizeof(V) == 64) {
    _mm512_stream_si512(static_cast<__m512i*>(target), (__m512i)value);
    return;
  }
#endif
#if defined(__x86_64__)
  if constexpr (sizeof(V) == 16) {
    _mm_stream_si128(static_cast<__m128i*>(target), (__m128i)value);
    return;
  }
#endif
  store_unaligned(target, value);
}

inline void stream(double* target, Vec value) { stream_bytes(target, value); }
inline void stream(float* target, Vec value) { stream_bytes(target, narrow(value)); }
inline void stream(bfloat16* target, Vec value) {
  stream_bytes(target, float_to_bfloat(narrow(value)));
}
inline void stream(float16* target, Vec value) {
  stream_bytes(target, float_to_half(narrow(value)));
}

inline void stream_fence() {
#if defined(__x86_64__)
  _mm_sfence();
#endif
}

// A fixed tree: each half onto the other, down to one lane.
template <int kCount, class V>
inline double sum_tree(V value) {
  if constexpr (kCount == 2) {
    return value[0] + value[1];
  } else {
    typedef double Half __attribute__((vector_size(kCount / 2 * 8)));
    Half half[2];
    __builtin_memcpy(half, &value, sizeof(value));
    return sum_tree<kCount / 2>(half[0] + half[1]);
  }
}

inline double sum_lanes(Vec value) { return sum_tree<kLanes>(value); }

}  // namespace
}  // namespace mtlfast
