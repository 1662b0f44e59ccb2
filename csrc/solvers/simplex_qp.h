// Exact active-set solver of the shifted minimum-norm problem over the simplex,
//
//     w(tau) = argmin { |J'w + tau g0|^2 / 2 : w >= 0, sum w = 1 },  given G = J J' and b = J g0.
//
// It is Wolfe's minimum-norm-point method. On a support S with anchor p the point is
// J'w = g_p + sum v_i (g_i - g_p), and v minimises a quadratic whose matrix, the Gramian of the
// differences, is positive definite as long as the members are affinely independent. Its Cholesky
// factor L does not depend on tau, so the next tau starts from the last support, and on one support
//
//     |J'w(tau)|^2 = hull_distance2 + drift2 tau^2:
//
// w(0) is the point of the affine hull of S nearest to the origin, hence orthogonal to the drift.
// tau = 0 with b null is MGDA.
#pragma once

#include "solver.h"

namespace mtlfast {

class SimplexQp {
 public:
  static MTLFAST_HD int64 workspace(int num_tasks) {
    const int64 count = num_tasks;
    return count * count + 6 * count;
  }

  // The support starts as the single task `start`, which must have a nonzero gradient; tasks with a
  // zero diagonal never enter. `linear` is b, or null where tau stays 0.
  MTLFAST_HD SimplexQp(int num_tasks, const double* gramian, const double* linear, int start,
                       double* workspace)
      : num_tasks_(num_tasks), size_(1), removals_(0), gramian_(gramian), linear_(linear) {
    weights_ = workspace;
    norms_ = weights_ + num_tasks;
    solution_ = norms_ + num_tasks;
    offset_ = solution_ + num_tasks;
    drift_ = offset_ + num_tasks;
    support_ =
        reinterpret_cast<int*>(drift_ + num_tasks);  // these doubles are only ever used as int
    role_ = support_ + num_tasks;
    factor_ = drift_ + 2 * num_tasks;
    for (int i = 0; i < num_tasks; ++i) {
      const double squared = product(i, i);
      norms_[i] = squared > 0.0 ? sqrt(squared) : 0.0;
      weights_[i] = 0.0;
      role_[i] = kFree;
    }
    support_[0] = start;
    role_[start] = kMember;
    weights_[start] = 1.0;
  }

  // Moves to w(tau). False: the cap on rounds was hit; the weights are feasible all the same.
  MTLFAST_HD bool solve(double tau) {
    release_refused();
    settle(tau);
    const int patience = 2 * num_tasks_ + 16;
    for (int round = 0; round < 4 * patience; ++round) {
      const int entering = most_violating(tau);
      if (entering < 0) return true;
      const int removals_before = removals_;
      if (enter(entering)) settle(tau);
      const bool left = role_[entering] != kMember;
      const int others_left = removals_ - removals_before - (left ? 1 : 0);
      if (others_left > 0 && round < patience) {
        release_refused();  // what was dependent on the others may not be any more
      } else if (left) {
        role_[entering] = kRefused;  // rounding alone made it look useful
      }
    }
    return false;
  }

  MTLFAST_HD const double* weights() const { return weights_; }

  // Squared distance from the origin to the affine hull of the support.
  MTLFAST_HD double hull_distance2() const {
    double value = product(support_[0], support_[0]);
    for (int i = 0; i + 1 < size_; ++i) value -= offset_[i] * offset_[i];
    return value > 0.0 ? value : 0.0;
  }

  // Squared length of the change of J'w per unit of tau on this support.
  MTLFAST_HD double drift2() const {
    double value = 0.0;
    for (int i = 0; i + 1 < size_; ++i) value += drift_[i] * drift_[i];
    return value;
  }

  // Squared norm of J'w, and in `spread` the sum of w_i n_i, the scale of its rounding error.
  MTLFAST_HD double norm2(double* spread) const {
    double value = 0.0;
    *spread = 0.0;
    for (int i = 0; i < size_; ++i) {
      value += weights_[support_[i]] * gradient(support_[i]);
      *spread += weights_[support_[i]] * norms_[support_[i]];
    }
    return value > 0.0 ? value : 0.0;
  }

 private:
  enum Role { kFree, kMember, kRefused };

  static constexpr double kEnterPivot = 2.0 * kEpsilon;  // relative to the norms behind the pivot
  static constexpr double kViolation = 16.0 * kEpsilon;

  MTLFAST_HD double product(int i, int j) const {
    return gramian_[static_cast<int64>(i) * num_tasks_ + j];
  }

  MTLFAST_HD double linear(int i) const { return linear_ != nullptr ? linear_[i] : 0.0; }

  MTLFAST_HD double gradient(int j) const {  // <g_j, J'w>
    double value = 0.0;
    for (int i = 0; i < size_; ++i) value += product(j, support_[i]) * weights_[support_[i]];
    return value;
  }

  MTLFAST_HD void release_refused() {
    for (int i = 0; i < num_tasks_; ++i) {
      if (role_[i] == kRefused) role_[i] = kFree;
    }
  }

  // Row `row` of L belongs to the member support_[row + 1]; offset_ = L^-1 <g_i - g_p, g_p> and
  // drift_ = L^-1 <g_i - g_p, g0> grow with it. False: the member depends on those before it.
  MTLFAST_HD bool factor_row(int row, double smallest_pivot) {
    const int anchor = support_[0];
    const int member = support_[row + 1];
    const double anchor2 = product(anchor, anchor);
    const double cross = product(member, anchor);
    double* line = factor_ + static_cast<int64>(row) * num_tasks_;
    double pivot = (product(member, member) - cross) + (anchor2 - cross);
    double offset = cross - anchor2;
    double drift = linear(member) - linear(anchor);
    for (int i = 0; i < row; ++i) {
      const double* other = factor_ + static_cast<int64>(i) * num_tasks_;
      const int earlier = support_[i + 1];
      double value = (product(member, earlier) - cross) + (anchor2 - product(earlier, anchor));
      for (int k = 0; k < i; ++k) value -= line[k] * other[k];
      line[i] = value / other[i];
      pivot -= line[i] * line[i];
      offset -= line[i] * offset_[i];
      drift -= line[i] * drift_[i];
    }
    if (!(pivot > smallest_pivot * (product(member, member) + anchor2))) return false;
    line[row] = sqrt(pivot);
    offset_[row] = offset / line[row];
    drift_[row] = drift / line[row];
    return true;
  }

  MTLFAST_HD void remove(int position) {
    role_[support_[position]] = kFree;
    weights_[support_[position]] = 0.0;
    --size_;
    ++removals_;
    for (int i = position; i < size_; ++i) support_[i] = support_[i + 1];
  }

  // Makes the member at `position` the anchor.
  MTLFAST_HD void promote(int position) {
    const int task = support_[position];
    support_[position] = support_[0];
    support_[0] = task;
  }

  MTLFAST_HD void refactor(int first_row) {
    int row = first_row;
    while (row + 1 < size_) {
      if (factor_row(row, 0.0)) {
        ++row;
        continue;
      }
      remove(row + 1);
      double total = 0.0;
      for (int i = 0; i < size_; ++i) total += weights_[support_[i]];
      for (int i = 0; i < size_; ++i) {
        weights_[support_[i]] = total > 0.0 ? weights_[support_[i]] / total : 1.0 / size_;
      }
    }
  }

  MTLFAST_HD void drop(int position) {
    remove(position);
    if (position > 0) {
      refactor(position - 1);
      return;
    }
    int smallest = 0;
    for (int i = 1; i < size_; ++i) {
      if (norms_[support_[i]] < norms_[support_[smallest]]) smallest = i;
    }
    promote(smallest);
    refactor(0);
  }

  MTLFAST_HD bool enter(int task) {
    support_[size_++] = task;
    if (size_ > 1 && !factor_row(size_ - 2, kEnterPivot)) {
      --size_;
      return false;
    }
    role_[task] = kMember;
    // Differences to the shortest member keep the digits of the short ones.
    if (norms_[task] < 0.5 * norms_[support_[0]]) {
      promote(size_ - 1);
      refactor(0);
    }
    return true;
  }

  // From the current weights to the minimiser on the support; members that would go negative leave.
  MTLFAST_HD void settle(double tau) {
    while (true) {
      minimise_on_hull(tau);
      int blocking = -1;
      double step = 1.0;
      for (int i = 0; i < size_; ++i) {
        if (solution_[i] > 0.0) continue;
        const double weight = weights_[support_[i]];
        const double ratio = weight > 0.0 ? weight / (weight - solution_[i]) : 0.0;
        if (blocking < 0 || ratio < step) {
          blocking = i;
          step = ratio;
        }
      }
      for (int i = 0; i < size_; ++i) {
        double* weight = weights_ + support_[i];
        *weight = blocking < 0 ? solution_[i] : *weight + step * (solution_[i] - *weight);
        if (*weight < 0.0) *weight = 0.0;
      }
      if (blocking < 0) return;
      drop(blocking);
    }
  }

  // solution_[i]: weight of support_[i] at the minimiser over the affine hull.
  MTLFAST_HD void minimise_on_hull(double tau) {
    double others = 0.0;
    for (int i = size_ - 2; i >= 0; --i) {
      double value = -(offset_[i] + tau * drift_[i]);
      for (int k = i + 1; k + 1 < size_; ++k) {
        value -= factor_[static_cast<int64>(k) * num_tasks_ + i] * solution_[k + 1];
      }
      solution_[i + 1] = value / factor_[static_cast<int64>(i) * num_tasks_ + i];
      others += solution_[i + 1];
    }
    solution_[0] = size_ > 1 ? 1.0 - others : 1.0;
  }

  // The task whose optimality condition fails by most beyond rounding, or -1.
  MTLFAST_HD int most_violating(double tau) const {
    double level = 0.0;
    double spread = 0.0;
    double shift = 0.0;
    for (int i = 0; i < size_; ++i) {
      const int member = support_[i];
      const double weight = weights_[member];
      level += weight * (gradient(member) + tau * linear(member));
      spread += weight * norms_[member];
      shift += weight * fabs(linear(member));
    }
    int worst = -1;
    double largest = 1.0;
    for (int j = 0; j < num_tasks_; ++j) {
      if (role_[j] != kFree || !(norms_[j] > 0.0)) continue;
      const double violation = level - (gradient(j) + tau * linear(j));
      const double rounding =
          kViolation * ((norms_[j] + spread) * spread + tau * (fabs(linear(j)) + shift));
      if (violation > largest * rounding) {
        worst = j;
        largest = violation / rounding;
      }
    }
    return worst;
  }

  int num_tasks_;
  int size_;      // members of the support
  int removals_;  // members that have left so far
  const double* gramian_;
  const double* linear_;
  double* weights_;   // [K], zero off the support
  double* norms_;     // [K]
  double* solution_;  // [size]
  double* offset_;    // [size - 1]
  double* drift_;     // [size - 1]
  double* factor_;    // [K, K], L in the lower triangle
  int* support_;      // [size], the anchor first
  int* role_;         // [K]
};

}  // namespace mtlfast
