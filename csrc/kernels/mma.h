// Products of small matrices by a warp: one function for each tensor core instruction, D = A B + C.
//
// Lane 4 g + t (g < 8, t < 4) holds, as the PTX ISA lays out the fragments:
//   m16n8k8 tf32: a = A[g][t], A[g + 8][t], A[g][t + 4], A[g + 8][t + 4]; b = B[t][g], B[t + 4][g];
//                 c, d = C[g][2 t], C[g][2 t + 1], C[g + 8][2 t], C[g + 8][2 t + 1].
//   m16n8k16 bf16, f16: the same with pairs of neighbours along k, the first one in the low half, in the place of the
//                 single numbers.
//   m8n8k4 f64:   a = A[g][t]; b = B[t][g]; c, d = C[g][2 t], C[g][2 t + 1].
// A product does not change when the columns of A and the rows of B are permuted alike. For X Xᵀ, whose A and B are
// both made of rows of X, the columns of X may therefore come in any order, as long as every lane of the same t brings
// the same columns: only the rows have to be those above.
//
// Older GPUs than sm_80, and the fibers of the tests, do the same with shuffles.
#pragma once

#include "element.h"

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
#define MTLFAST_TENSOR_CORES 1
#else
#define MTLFAST_TENSOR_CORES 0
#endif

namespace mtlfast {

#if MTLFAST_TENSOR_CORES

// Of bfloat16 or float16.
template <class T>
MTLFAST_DEVICE void mma_16(float (&d)[4], const uint32 (&a)[4], const uint32 (&b)[2],
                           const float (&c)[4]);

#define MTLFAST_MMA(name, instruction)                                                          \
  MTLFAST_DEVICE void name(float (&d)[4], const uint32(&a)[4], const uint32(&b)[2],             \
                           const float (&c)[4]) {                                               \
    asm volatile("mma.sync.aligned." instruction                                                \
                 " {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%10, %11, %12, %13};"         \
                 : "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3])                               \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]), "f"(c[0]), \
                   "f"(c[1]), "f"(c[2]), "f"(c[3]));                                            \
  }

MTLFAST_MMA(mma_tf32, "m16n8k8.row.col.f32.tf32.tf32.f32")
template <>
MTLFAST_MMA(mma_16<BFloat16>, "m16n8k16.row.col.f32.bf16.bf16.f32")
template <>
MTLFAST_MMA(mma_16<Float16>, "m16n8k16.row.col.f32.f16.f16.f32")

MTLFAST_DEVICE void mma_f64(double (&d)[2], double a, double b) {
  asm volatile("mma.sync.aligned.m8n8k4.row.col.f64.f64.f64.f64 {%0, %1}, {%2}, {%3}, {%0, %1};"
               : "+d"(d[0]), "+d"(d[1])
               : "d"(a), "d"(b));
}

#else

#if defined(MTLFAST_FIBERS)
// As a tensor core adds: the sum of products and C is cut off, not rounded, to float32.
typedef double Wide;
MTLFAST_DEVICE float cut_off(double x) {
  const float rounded = static_cast<float>(x);
  if (!(fabs(static_cast<double>(rounded)) > fabs(x))) return rounded;
  return __uint_as_float(__float_as_uint(rounded) - 1u);
}
#else
typedef float Wide;
MTLFAST_DEVICE float cut_off(float x) { return x; }
#endif

// What a lane has of one tile.
struct Quad {
  float v[4];
};

// Dot::of(a, b): the sum of the products of the numbers that two registers hold. Not inlined: a kernel has dozens.
template <class Dot>
__device__ __noinline__ Quad mma_by_shuffles(uint32 a0, uint32 a1, uint32 a2, uint32 a3, uint32 b0,
                                             uint32 b1, Quad c) {
  const auto both = [](uint32 low, uint32 high) { return static_cast<uint64>(high) << 32 | low; };
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  Wide sums[4] = {c.v[0], c.v[1], c.v[2], c.v[3]};
#pragma unroll
  for (int t = 0; t < 4; ++t) {
    const int row = lane / 4 * 4 + t;
    const int column = lane % 4 * 8 + t;
    const uint64 rows[2] = {__shfl_sync(kAllLanes, both(a0, a2), row),
                            __shfl_sync(kAllLanes, both(a1, a3), row)};
    const uint64 columns[2] = {__shfl_sync(kAllLanes, both(b0, b1), column),
                               __shfl_sync(kAllLanes, both(b0, b1), column + 4)};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const uint64 x = rows[i / 2];
      const uint64 y = columns[i % 2];
      sums[i] += Dot::of(static_cast<uint32>(x), static_cast<uint32>(y));
      sums[i] += Dot::of(static_cast<uint32>(x >> 32), static_cast<uint32>(y >> 32));
    }
  }
  return {{cut_off(sums[0]), cut_off(sums[1]), cut_off(sums[2]), cut_off(sums[3])}};
}

template <class Dot>
MTLFAST_DEVICE void mma_by_shuffles(float (&d)[4], const uint32 (&a)[4], const uint32 (&b)[2],
                                    const float (&c)[4]) {
  const Quad sums =
      mma_by_shuffles<Dot>(a[0], a[1], a[2], a[3], b[0], b[1], Quad{{c[0], c[1], c[2], c[3]}});
#pragma unroll
  for (int i = 0; i < 4; ++i) d[i] = sums.v[i];
}

// A tensor core reads the upper 19 bits of a tf32 number.
struct DotTf32 {
  static MTLFAST_DEVICE Wide of(uint32 a, uint32 b) { return number(a) * number(b); }
  static MTLFAST_DEVICE Wide number(uint32 bits) { return __uint_as_float(bits & 0xffffe000u); }
};

template <class T>
struct DotPair {
  static MTLFAST_DEVICE Wide of(uint32 a, uint32 b) {
    return number(a) * number(b) + number(a >> 16) * number(b >> 16);
  }
  static MTLFAST_DEVICE Wide number(uint32 bits) { return widen(T{static_cast<uint16>(bits)}); }
};

MTLFAST_DEVICE void mma_tf32(float (&d)[4], const uint32 (&a)[4], const uint32 (&b)[2],
                             const float (&c)[4]) {
  mma_by_shuffles<DotTf32>(d, a, b, c);
}

template <class T>
MTLFAST_DEVICE void mma_16(float (&d)[4], const uint32 (&a)[4], const uint32 (&b)[2],
                           const float (&c)[4]) {
  mma_by_shuffles<DotPair<T>>(d, a, b, c);
}

// What a lane has of one tile of float64.
struct Couple {
  double v[2];
};

// Not inlined, as above.
__device__ __noinline__ inline Couple mma_f64_by_shuffles(double a, double b, Couple c) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
#pragma unroll
  for (int t = 0; t < 4; ++t) {
    const double row = __shfl_sync(kAllLanes, a, lane / 4 * 4 + t);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      c.v[i] += row * __shfl_sync(kAllLanes, b, (lane % 4 * 2 + i) * 4 + t);
    }
  }
  return c;
}

MTLFAST_DEVICE void mma_f64(double (&d)[2], double a, double b) {
  const Couple sums = mma_f64_by_shuffles(a, b, Couple{{d[0], d[1]}});
  d[0] = sums.v[0];
  d[1] = sums.v[1];
}

#endif

}  // namespace mtlfast
