// ExcessMTL: adds the squares of one task's gradient to their sums S and returns Σ g² / sqrt(S + 1e-7).
#pragma once

#include "column_walk.h"

namespace mtlfast {
namespace {

constexpr int kExcessUnroll = 4;
constexpr int kExcessStep = kExcessUnroll * kLanes;

// What the sums of a gradient type are kept in: float32, for float64 gradients float64; and their largest value,
// where they stop, because from Inf there is no way back.
template <class T>
struct Squares {
  typedef float Type;
  static constexpr double kLargest = 0x1.fffffep127;
};
template <>
struct Squares<double> {
  typedef double Type;
  static constexpr double kLargest = 0x1.fffffffffffffp1023;
};

// One vector of columns: `sums` becomes the new sums, the return value is what they add to the excess.
template <class T>
inline Vec excess_step(Vec gradient, Vec& sums) {
  const Vec square = gradient * gradient;
  const Vec total = sums + square;
  sums = lesser(Vec{} + Squares<T>::kLargest, total);
  return square / square_root(total + 1e-7);
}

template <class T>
double excess_row(const void* untyped_grad, const void* untyped_old, void* untyped_sums,
                  int64_t begin, int64_t end, bool stream_them) {
  typedef typename Squares<T>::Type S;
  const T* grad = static_cast<const T*>(untyped_grad);
  const S* old = static_cast<const S*>(untyped_old);
  S* sums = static_cast<S*>(untyped_sums);
  Vec excess[kExcessUnroll] = {};
  walk_columns(
      sums, begin, end, stream_them,
      [&](int64_t column, int64_t last, bool past_cache) {
        for (; last - column >= kExcessStep; column += kExcessStep) {
#pragma GCC unroll 4
          for (int u = 0; u < kExcessUnroll; ++u) {
            const int64_t lane = column + u * kLanes;
            Vec total = old == nullptr ? Vec{} : load(old + lane);
            excess[u] += excess_step<T>(load(grad + lane), total);
            past_cache ? stream(sums + lane, total) : store(sums + lane, total);
          }
        }
        return column;
      },
      [&](int64_t column, int64_t count) {
        Vec total = old == nullptr ? Vec{} : load_partial(old + column, count);
        excess[0] += excess_step<T>(load_partial(grad + column, count), total);
        store_partial(sums + column, total, count);
      });
  return sum_lanes((excess[0] + excess[1]) + (excess[2] + excess[3]));
}

}  // namespace
}  // namespace mtlfast
