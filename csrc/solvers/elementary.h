// What the solvers of the loss family share: softmax, Adam, unit vectors, and which losses have a
// logarithm.
#pragma once

#include "solver.h"

namespace mtlfast {

constexpr double kTiny = 2.2250738585072014e-308;  // smallest normal double; 1 / kTiny is finite

// Whether log(x) and 1 / x mean anything; what is smaller counts as zero.
MTLFAST_HD bool is_positive(double x) { return x >= kTiny; }

// A member of a softmax that takes no part in it: its share is 0.
constexpr double kLeftOut = -kHuge;

// out = total * softmax(values), all zeros where every value is left out. May write in place.
MTLFAST_HD void softmax(const double* values, int count, double total, double* out) {
  double largest = kLeftOut;
  for (int i = 0; i < count; ++i) largest = values[i] > largest ? values[i] : largest;
  double sum = 0.0;
  for (int i = 0; i < count; ++i) {
    out[i] = values[i] > kLeftOut ? exp(values[i] - largest) : 0.0;
    sum += out[i];
  }
  for (int i = 0; i < count; ++i) out[i] = sum > 0.0 ? out[i] * (total / sum) : 0.0;
}

// Adam with the constants of torch.optim.Adam: 0.9, 0.999, 1e-8.
struct Adam {
  double correction1;
  double correction2;

  // count: updates done, this one included.
  static MTLFAST_HD Adam at(double count) {
    return Adam{1.0 - pow(0.9, count), 1.0 - pow(0.999, count)};
  }

  // The step to subtract, times the learning rate, from a number with this slope and these moments.
  MTLFAST_HD double step(double slope, double* first, double* second) const {
    *first = 0.9 * *first + 0.1 * slope;
    *second = 0.999 * *second + 0.001 * slope * slope;
    return (*first / correction1) / (sqrt(*second / correction2) + 1e-8);
  }
};

// out = values / |values|, zeros for a zero vector; returns |values|, which may overflow to Inf.
MTLFAST_HD double normalize(const double* values, int count, double* out) {
  double largest = 0.0;
  for (int i = 0; i < count; ++i) largest = fmax(largest, fabs(values[i]));
  if (largest == 0.0) return fill(out, count, 0.0, kOk);
  double squares = 0.0;
  for (int i = 0; i < count; ++i) {
    out[i] = values[i] / largest;  // neither squares nor sum can overflow or vanish
    squares += out[i] * out[i];
  }
  const double length = sqrt(squares);
  for (int i = 0; i < count; ++i) out[i] /= length;
  return largest * length;
}

// The part of a unit vector that is orthogonal to another one; returns its length. Where that is
// rounding, part and length are zero: no direction may come out of noise.
MTLFAST_HD double orthogonal_part(const double* unit, const double* other, int count,
                                  double* part) {
  double product = 0.0;
  for (int i = 0; i < count; ++i) product += unit[i] * other[i];
  double squares = 0.0;
  for (int i = 0; i < count; ++i) {
    part[i] = unit[i] - product * other[i];
    squares += part[i] * part[i];
  }
  const double length = sqrt(squares);
  if (length > (4 + count) * kEpsilon) return length;
  return fill(part, count, 0.0, kOk);
}

}  // namespace mtlfast
