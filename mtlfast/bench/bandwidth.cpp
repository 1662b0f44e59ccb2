// Two measures of memory bandwidth, on the threads that torch uses: see bandwidth.py.
#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace {

typedef float Line __attribute__((vector_size(64)));  // one cache line

constexpr long kBlock = 16384;  // floats per unit of work: 64 KiB
constexpr int kWidth = 16;      // floats per line
constexpr int kUnroll = 8;      // lines per turn of a loop

// Past the cache, so that the line is not read before it is written.
inline void store(float* to, Line line) {
#if defined(__AVX512F__)
  _mm512_stream_ps(to, (__m512)line);
#elif defined(__x86_64__)
  for (int i = 0; i < kWidth; i += 4)
    _mm_stream_ps(to + i, _mm_set_ps(line[i + 3], line[i + 2], line[i + 1], line[i]));
#else
  *(Line*)to = line;
#endif
}

}  // namespace

// The sum of count floats, a multiple of kBlock, in independent accumulators: nothing waits for an add.
extern "C" float read_sum(const float* x, long count) {
  float total = 0;
#pragma omp parallel for schedule(static) reduction(+ : total)
  for (long begin = 0; begin < count; begin += kBlock) {
    Line sums[kUnroll] = {};
    for (long i = begin; i < begin + kBlock; i += kUnroll * kWidth)
#pragma GCC unroll 8
      for (int j = 0; j < kUnroll; ++j) sums[j] += *(const Line*)(x + i + j * kWidth);
    for (int j = 1; j < kUnroll; ++j) sums[0] += sums[j];
    for (int j = 0; j < kWidth; ++j) total += sums[0][j];
  }
  return total;
}

// a = b + s * c.
extern "C" void triad(float* a, const float* b, const float* c, float s, long count) {
#pragma omp parallel for schedule(static)
  for (long begin = 0; begin < count; begin += kBlock) {
    for (long i = begin; i < begin + kBlock; i += kWidth)
      store(a + i, *(const Line*)(b + i) + s * *(const Line*)(c + i));
#if defined(__x86_64__)
    _mm_sfence();
#endif
  }
}
