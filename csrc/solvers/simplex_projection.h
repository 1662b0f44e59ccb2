// The nearest point of the probability simplex {w >= 0, sum w = 1}, and a gradient step ending there.
#pragma once

#include "solver.h"

namespace mtlfast {

// Replaces `values` by the nearest point of the simplex: max(values - threshold, 0), exactly, without
// a sort. The support starts as all entries within 1 of the largest, which holds it, and shrinks to
// what lies above the threshold that would make it sum to 1; the threshold only ever rises.
MTLFAST_HD void project_onto_simplex(double* values, int count) {
  double largest = values[0];
  for (int i = 1; i < count; ++i) largest = values[i] > largest ? values[i] : largest;
  double threshold = -1.0;  // relative to the largest entry, which keeps every digit that counts
  int size = 0;
  for (int pass = 0; pass <= count; ++pass) {
    double total = 0.0;
    int above = 0;
    for (int i = 0; i < count; ++i) {
      const double value = values[i] - largest;
      if (!(value > threshold)) continue;
      total += value;
      ++above;
    }
    if (above == size || above == 0) break;
    size = above;
    threshold = (total - 1.0) / size;
  }
  for (int i = 0; i < count; ++i) {
    const double value = values[i] - largest - threshold;
    values[i] = value > 0.0 ? value : 0.0;
  }
}

constexpr double kLongestStep = 1e300;  // a step on the simplex that is longer ends in a corner too

MTLFAST_HD double bounded(double value, double bound) {
  if (value > bound) return bound;
  return value < -bound ? -bound : value;
}

// The uniform point, where `point` is all zeros, the mark of a fresh state.
MTLFAST_HD void start_on_simplex(double* point, int count) {
  double total = 0.0;
  for (int i = 0; i < count; ++i) total += point[i];
  if (total == 0.0) fill(point, count, 1.0 / count, kOk);
}

// point <- projection of point - rate (scale^2 A point + rho point), A [count, count] with rows
// `stride` apart. Finite at every scale.
MTLFAST_HD void step_on_simplex(const double* matrix, int64 stride, int count, double scale,
                                double rate, double rho, double* point, double* moved) {
  double factor = rate * scale * scale;
  if (!(factor < kHuge)) factor = kHuge;
  for (int i = 0; i < count; ++i) {
    double slope = 0.0;
    for (int j = 0; j < count; ++j) slope += matrix[i * stride + j] * point[j];
    moved[i] = point[i] - bounded(factor * slope + rate * rho * point[i], kLongestStep);
  }
  for (int i = 0; i < count; ++i) point[i] = moved[i];
  project_onto_simplex(point, count);
}

}  // namespace mtlfast
