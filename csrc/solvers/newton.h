// The root w > 0 of G w = w^-q, for Nash-MTL (q = 1) and FairGrad (q = 1 / alpha), exactly.
//
// It minimises a strictly convex potential, w'Gw / 2 minus the integral of each w_i^-q, and exists
// unless 0 is in the convex hull of the gradients. With the cosines C and v_i = n_i w_i it reads
//
//     C v = z,   log z_i + q log v_i = (q - 1) log n_i,
//
// and the unknowns of Newton's step are both v and z: with r the residual of the second equation,
//
//     (C + q diag(z / v)) dv = z (1 + r) - C v,   dz_i / z_i = r_i - q dv_i / v_i.
//
// The matrix is positive definite at every v, z > 0. A step is cut where something would change by
// more than kReach of itself, and a decrease is applied as exp(dv / v), so both stay positive with
// no line search. q = 1 comes first for every q: the root exists for all q or for none, and lengths
// do not enter it. That root is the start for any other q.
//
// Tasks with a zero gradient leave the solve.
//
// The state of both methods is the weights of the last root, K, all zeros before there was one.
#pragma once

#include "solver.h"

namespace mtlfast {

class NewtonRoot {
 public:
  static MTLFAST_HD int64 workspace(int num_tasks) {
    const int64 count = num_tasks;
    return 2 * count * count + 9 * count;
  }

  MTLFAST_HD NewtonRoot(int num_tasks, const double* gramian, Lanes lanes, double* workspace)
      : num_tasks_(num_tasks), size_(0), lanes_(lanes) {
    cosines_ = workspace;
    matrix_ = cosines_ + static_cast<int64>(num_tasks) * num_tasks;
    norms_ = matrix_ + static_cast<int64>(num_tasks) * num_tasks;
    values_ = norms_ + num_tasks;
    log_slacks_ = values_ + num_tasks;
    slacks_ = log_slacks_ + num_tasks;
    targets_ = slacks_ + num_tasks;
    residuals_ = targets_ + num_tasks;
    steps_ = residuals_ + num_tasks;
    pivots_ = steps_ + num_tasks;
    tasks_ =
        reinterpret_cast<int*>(pivots_ + num_tasks);  // these doubles are only ever used as int
    for (int i = 0; i < num_tasks; ++i) {
      if (!(gramian[static_cast<int64>(i) * (num_tasks + 1)] > 0.0)) continue;
      if (lanes_.first()) tasks_[size_] = i;
      ++size_;
    }
    lanes_.sync();
    for (int a = lanes_.index(); a < size_; a += lanes_.count()) {
      norms_[a] = sqrt(gramian[static_cast<int64>(tasks_[a]) * (num_tasks + 1)]);
    }
    lanes_.sync();
    for (int a = lanes_.row(); a < size_; a += lanes_.rows()) {
      const double* row = gramian + static_cast<int64>(tasks_[a]) * num_tasks;
      if (lanes_.column() == 0) cosines_[static_cast<int64>(a) * size_ + a] = 1.0;
      for (int b = a + 1 + lanes_.column(); b < size_; b += lanes_.columns()) {
        double cosine = row[tasks_[b]] / norms_[a] / norms_[b];
        if (cosine > 1.0) cosine = 1.0;
        if (!(cosine >= -1.0)) cosine = -1.0;
        cosines_[static_cast<int64>(a) * size_ + b] = cosine;
        cosines_[static_cast<int64>(b) * size_ + a] = cosine;
      }
    }
    lanes_.sync();
  }

  // kDegenerate: no root, up to rounding. kNotConverged: the last iterate, positive and finite.
  MTLFAST_HD int solve(double exponent) {
    if (size_ == 0) return kDegenerate;
    start();
    const int status = iterate(1.0, exponent == 1.0 ? kTolerance : kLooseTolerance);
    return status != kOk || exponent == 1.0 ? status : iterate(exponent, kTolerance);
  }

  // w of every task, 0 where the gradient is zero; |J'w| is returned.
  MTLFAST_HD double write_weights(double* weights) const {
    fill(weights, num_tasks_, 0.0, kOk, lanes_);
    double length2 = 0.0;  // v'z, a sum of positive terms, where v'Cv cancels
    for (int a = lanes_.index(); a < size_; a += lanes_.count()) {
      weights[tasks_[a]] = values_[a] / norms_[a];
      length2 += values_[a] * exp(log_slacks_[a]);
    }
    lanes_.sync();
    return sqrt(lanes_.sum(length2));
  }

 private:
  static constexpr int kMaxIterations = 200;
  static constexpr double kReach = 4.0;
  static constexpr double kTolerance = 1e-8;  // of a step; what is left is of its square
  static constexpr double kLooseTolerance = 0.1;
  static constexpr double kNoise = 1024.0 * kEpsilon;  // of |J'w|^2, to (sum w_i n_i)^2

  // Equal v at the length that would be right if the sum of the unit gradients were the answer.
  MTLFAST_HD void start() {
    const int64 count = static_cast<int64>(size_) * size_;
    double total = 0.0;
    for (int64 i = lanes_.index(); i < count; i += lanes_.count()) total += cosines_[i];
    total = lanes_.sum(total);
    const double smallest = 1e-3 * size_;
    const double value = sqrt(size_ / (total > smallest ? total : smallest));
    const double log_slack = -log(value);
    for (int a = lanes_.index(); a < size_; a += lanes_.count()) {
      values_[a] = value;
      log_slacks_[a] = log_slack;
    }
    lanes_.sync();
  }

  MTLFAST_HD int iterate(double exponent, double tolerance) {
    for (int a = lanes_.index(); a < size_; a += lanes_.count()) {
      targets_[a] = (exponent - 1.0) * log(norms_[a]);
    }
    double last_change = kHuge;
    for (int iteration = 0; iteration < kMaxIterations; ++iteration) {
      if (!multiply() && exponent == 1.0) return kDegenerate;
      for (int a = lanes_.index(); a < size_; a += lanes_.count()) {
        residuals_[a] = targets_[a] - log_slacks_[a] - exponent * log(values_[a]);
        slacks_[a] = exp(log_slacks_[a]);
        steps_[a] = slacks_[a] * (1.0 + residuals_[a]) - steps_[a];
      }
      solve_step(exponent);

      double change = 0.0;
      double longest = 0.0;
      bool finite = true;
      for (int a = lanes_.index(); a < size_; a += lanes_.count()) {
        steps_[a] /= values_[a];
        const double slack_step = residuals_[a] - exponent * steps_[a];
        finite = finite && is_finite(slack_step);
        change = fmax(change, fmax(fabs(steps_[a]), fabs(residuals_[a])));
        longest = fmax(longest, fabs(slack_step));
      }
      if (!lanes_.all(finite)) return kNotConverged;
      change = lanes_.largest(change);
      longest = fmax(lanes_.largest(longest), change);
      const double fraction = longest > kReach ? kReach / longest : 1.0;
      for (int a = lanes_.index(); a < size_; a += lanes_.count()) {
        const double rise = fraction * steps_[a];
        const double slack_rise = fraction * (residuals_[a] - exponent * steps_[a]);
        values_[a] *= rise < 0.0 ? exp(rise) : 1.0 + rise;
        log_slacks_[a] += slack_rise < 0.0 ? slack_rise : log1p(slack_rise);
      }
      lanes_.sync();
      // Where a small step does not halve, it is rounding.
      const bool settled = change < 0.05 && change >= 0.5 * last_change;
      if (change <= tolerance || settled) return kOk;
      last_change = change;
    }
    return kNotConverged;
  }

  // Writes C v to steps_. False: |J'w| is rounding.
  MTLFAST_HD bool multiply() {
    for (int a = lanes_.index(); a < size_; a += lanes_.count()) {
      const double* row = cosines_ + static_cast<int64>(a) * size_;
      double product = 0.0;
      for (int b = 0; b < size_; ++b) product += row[b] * values_[b];
      steps_[a] = product;
    }
    lanes_.sync();
    const Lanes team = lanes_.adders(size_);
    double length2 = 0.0;
    double spread = 0.0;
    for (int a = team.index(); a < size_; a += team.count()) {
      length2 += values_[a] * steps_[a];
      spread += values_[a];
    }
    length2 = team.sum(length2);
    spread = team.sum(spread);
    lanes_.sync();
    return length2 > kNoise * spread * spread;
  }

  // Solves (C + q diag(z / v)) x = steps_ in place: U'DU, where U overwrites the upper triangle.
  // slacks_ is used up.
  MTLFAST_HD void solve_step(double exponent) {
    const int size = size_;
    for (int a = lanes_.index(); a < size; a += lanes_.count()) {
      slacks_[a] = exponent * slacks_[a] / values_[a];
    }
    for (int a = lanes_.row(); a < size; a += lanes_.rows()) {
      const int64 row = static_cast<int64>(a) * size;
      for (int b = a + lanes_.column(); b < size; b += lanes_.columns()) {
        matrix_[row + b] = cosines_[row + b];
      }
    }
    lanes_.sync();
    for (int a = 0; a < size; ++a) {
      const double* row = matrix_ + static_cast<int64>(a) * size;
      const double inverse = 1.0 / (row[a] + slacks_[a]);
      if (lanes_.first()) pivots_[a] = inverse;
      for (int b = a + 1 + lanes_.row(); b < size; b += lanes_.rows()) {
        const double factor = row[b] * inverse;
        double* below = matrix_ + static_cast<int64>(b) * size;
        for (int c = b + lanes_.column(); c < size; c += lanes_.columns()) {
          below[c] -= factor * row[c];
        }
        if (lanes_.column() == 0) steps_[b] -= factor * steps_[a];
      }
      lanes_.sync();
    }
    for (int a = size - 1; a >= 0; --a) {
      const double* row = matrix_ + static_cast<int64>(a) * size;
      const Lanes team = lanes_.adders(size - 1 - a);
      double value = team.first() ? steps_[a] : 0.0;
      for (int b = a + 1 + team.index(); b < size; b += team.count()) value -= row[b] * steps_[b];
      value = team.sum(value) * pivots_[a];
      lanes_.sync();
      if (lanes_.first()) steps_[a] = value;
      lanes_.sync();
    }
  }

  int num_tasks_;
  int size_;  // tasks with a nonzero gradient
  Lanes lanes_;
  double* cosines_;     // [size, size]
  double* matrix_;      // [size, size], scratch of the linear system
  double* norms_;       // [size]
  double* values_;      // [size], v = n w
  double* log_slacks_;  // [size], log z; C v = z at the root
  double* slacks_;      // [size], z, then q z / v
  double* targets_;     // [size], (q - 1) log n
  double* residuals_;   // [size], r
  double* steps_;       // [size], right-hand side, dv, then dv / v
  double* pivots_;      // [size], inverse
  int* tasks_;          // [size]
};

// 1 / n_i, or the weights of the last root where there was one; |J'w| is returned.
MTLFAST_HD double last_weights(const SolveArgs& args, double factor) {
  const int num_tasks = args.num_tasks;
  const Lanes lanes = args.lanes;
  bool known = false;
  for (int i = lanes.index(); i < num_tasks; i += lanes.count()) {
    known = known || args.state[i] != 0.0;
  }
  known = lanes.any(known);
  for (int i = lanes.index(); i < num_tasks; i += lanes.count()) {
    const double squared = args.gramian[static_cast<int64>(i) * num_tasks + i];
    const double inverse = squared > 0.0 ? factor / (args.scale * sqrt(squared)) : 0.0;
    args.weights[i] = known ? args.state[i] : inverse;
  }
  lanes.sync();
  double length2 = 0.0;
  for (int i = lanes.index(); i < num_tasks; i += lanes.count()) {
    const double* row = args.gramian + static_cast<int64>(i) * num_tasks;
    double product = 0.0;
    for (int j = 0; j < num_tasks; ++j) product += row[j] * (args.scale * args.weights[j]);
    length2 += args.scale * args.weights[i] * product;
  }
  length2 = lanes.sum(length2);
  lanes.sync();
  return length2 > 0.0 ? sqrt(length2) : 0.0;
}

// The root at its true scale times `factor`, or last_weights where there is none; shortened where
// |J'w| exceeds `max_norm`.
MTLFAST_HD int fair_weights(const SolveArgs& args, double exponent, double factor,
                            double max_norm) {
  NewtonRoot root(args.num_tasks, args.gramian, args.lanes, args.workspace);
  const int status = root.solve(exponent);
  double length = 0.0;  // |J'w|
  double unit = 1.0;
  if (status == kDegenerate) {
    length = last_weights(args, factor);
  } else {
    // s^2 G w = w^-q: the root goes with s to the power -2 / (1 + q), |J'w| with one more.
    unit = factor * pow(args.scale, -2.0 / (exponent + 1.0));
    length = factor * pow(args.scale, (exponent - 1.0) / (exponent + 1.0));
    length *= root.write_weights(args.weights);
  }
  if (length > max_norm) unit *= max_norm / length;
  unit = fmin(unit, kHuge);
  for (int i = args.lanes.index(); i < args.num_tasks; i += args.lanes.count()) {
    args.weights[i] = fmin(args.weights[i] * unit, kHuge);
    if (status == kOk) args.state[i] = args.weights[i];
  }
  args.lanes.sync();
  return status;
}

}  // namespace mtlfast
