// The nearest point of the probability simplex {w >= 0, sum w = 1}, and a gradient step ending there.
#pragma once

#include "solver.h"

namespace mtlfast {

// Replaces `values` by the nearest point of the simplex: max(values - threshold, 0), exactly, without
// a sort. The support starts as all entries within 1 of the largest, which holds it, and shrinks to
// what lies above the threshold that would make it sum to 1; the threshold only ever rises.
MTLFAST_HD void project_onto_simplex(double* values, int count, Lanes lanes) {
  const Lanes team = lanes.adders(count);
  double largest = values[0];
  for (int i = team.index(); i < count; i += team.count()) {
    largest = values[i] > largest ? values[i] : largest;
  }
  largest = team.largest(largest);
  double threshold = -1.0;  // relative to the largest entry, which keeps every digit that counts
  double size = 0.0;
  for (int pass = 0; pass <= count; ++pass) {
    double total = 0.0;
    double above = 0.0;
    for (int i = team.index(); i < count; i += team.count()) {
      const double value = values[i] - largest;
      if (!(value > threshold)) continue;
      total += value;
      above += 1.0;
    }
    total = team.sum(total);
    above = team.sum(above);
    if (above == size || above == 0.0) break;
    size = above;
    threshold = (total - 1.0) / size;
  }
  lanes.sync();
  for (int i = lanes.index(); i < count; i += lanes.count()) {
    const double value = values[i] - largest - threshold;
    values[i] = value > 0.0 ? value : 0.0;
  }
  lanes.sync();
}

constexpr double kLongestStep = 1e300;  // a step on the simplex that is longer ends in a corner too

MTLFAST_HD double bounded(double value, double bound) {
  if (value > bound) return bound;
  return value < -bound ? -bound : value;
}

// The uniform point, where `point` is all zeros, the mark of a fresh state.
MTLFAST_HD void start_on_simplex(double* point, int count, Lanes lanes) {
  const Lanes team = lanes.adders(count);
  double total = 0.0;
  for (int i = team.index(); i < count; i += team.count()) total += point[i];
  total = team.sum(total);
  lanes.sync();
  if (total == 0.0) fill(point, count, 1.0 / count, kOk, lanes);
}

// point <- projection of point - rate (scale^2 A point + rho point), A [count, count] with rows
// `stride` apart. Finite at every scale.
MTLFAST_HD void step_on_simplex(const double* matrix, int64 stride, int count, double scale,
                                double rate, double rho, double* point, double* moved,
                                Lanes lanes) {
  double factor = rate * scale * scale;
  if (!(factor < kHuge)) factor = kHuge;
  for (int i = lanes.index(); i < count; i += lanes.count()) {
    double slope = 0.0;
    for (int j = 0; j < count; ++j) slope += matrix[i * stride + j] * point[j];
    moved[i] = point[i] - bounded(factor * slope + rate * rho * point[i], kLongestStep);
  }
  lanes.sync();
  for (int i = lanes.index(); i < count; i += lanes.count()) point[i] = moved[i];
  lanes.sync();
  project_onto_simplex(point, count, lanes);
}

}  // namespace mtlfast
