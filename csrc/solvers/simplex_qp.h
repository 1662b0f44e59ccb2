// Exact active-set solver of the shifted minimum-norm problem over the simplex,
//
//     w(tau) = argmin { |J'w + tau g0|^2 / 2 : w >= 0, sum w = 1 },  given G = J J' and b = J g0.
//
// It is Wolfe's minimum-norm-point method: the minimiser on a support S is the point of its affine
// hull nearest to -tau g0, as long as all its coefficients are positive. The factor behind it does
// not depend on tau, so the next tau starts from the last support, and on one support
//
//     |J'w(tau)|^2 = hull_distance2 + drift2 tau^2:
//
// w(0) is the point of the affine hull of S nearest to the origin, hence orthogonal to the drift.
// tau = 0 with b null is MGDA.
#pragma once

#include "affine_hull.h"
#include "solver.h"

namespace mtlfast {

class SimplexQp : public AffineHull {
 public:
  static MTLFAST_HD int64 workspace(int num_tasks) {
    return 4 * static_cast<int64>(num_tasks) + AffineHull::workspace(num_tasks);
  }

  // The support starts as the single task `start`, which must have a nonzero gradient; tasks with a
  // zero diagonal never enter. `linear` is b, or null where tau stays 0.
  MTLFAST_HD SimplexQp(int num_tasks, const double* gramian, const double* linear, int start,
                       Lanes lanes, double* workspace)
      : AffineHull(num_tasks, gramian, linear, start, lanes, workspace + 4 * num_tasks),
        removals_(0) {
    weights_ = workspace;
    norms_ = weights_ + num_tasks;
    solution_ = norms_ + num_tasks;
    role_ =
        reinterpret_cast<int*>(solution_ + num_tasks);  // these doubles are only ever used as int
    for (int i = lanes_.index(); i < num_tasks; i += lanes_.count()) {
      const double squared = product(i, i);
      norms_[i] = squared > 0.0 ? sqrt(squared) : 0.0;
      weights_[i] = i == start ? 1.0 : 0.0;
      role_[i] = i == start ? kMember : kFree;
    }
    lanes_.sync();
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
      lanes_.sync();
      const int others_left = removals_ - removals_before - (left ? 1 : 0);
      if (others_left > 0 && round < patience) {
        release_refused();  // what was dependent on the others may not be any more
      } else if (left) {
        set_role(entering, kRefused);  // rounding alone made it look useful
      }
    }
    return false;
  }

  MTLFAST_HD const double* weights() const { return weights_; }

  // |J'w|^2, and in `spread` the sum of w_i n_i, the scale of its rounding error.
  MTLFAST_HD double norm2(double* spread) const {
    double value = 0.0;
    double total = 0.0;
    for (int i = lanes_.index(); i < size_; i += lanes_.count()) {
      value += weights_[support_[i]] * gradient(support_[i]);
      total += weights_[support_[i]] * norms_[support_[i]];
    }
    value = lanes_.sum(value);
    *spread = lanes_.sum(total);
    return value > 0.0 ? value : 0.0;
  }

 private:
  enum Role { kFree, kMember, kRefused };

  static constexpr double kEnterPivot = 2.0 * kEpsilon;  // relative to the norms behind the pivot
  static constexpr double kViolation = 16.0 * kEpsilon;

  // <g_j, J'w>, by the calling lane alone.
  MTLFAST_HD double gradient(int j) const {
    double value = 0.0;
    for (int i = 0; i < size_; ++i) value += product(j, support_[i]) * weights_[support_[i]];
    return value;
  }

  MTLFAST_HD void set_role(int task, Role role) {
    if (lanes_.first()) role_[task] = role;
    lanes_.sync();
  }

  MTLFAST_HD void release_refused() {
    for (int i = lanes_.index(); i < num_tasks_; i += lanes_.count()) {
      if (role_[i] == kRefused) role_[i] = kFree;
    }
    lanes_.sync();
  }

  MTLFAST_HD void remove(int position) {
    if (lanes_.first()) {
      role_[support_[position]] = kFree;
      weights_[support_[position]] = 0.0;
    }
    lanes_.sync();
    erase(position);
    ++removals_;
  }

  MTLFAST_HD void refactor(int first_row) {
    int row = first_row;
    while (row + 1 < size_) {
      if (factor_row(row, 0.0)) {
        ++row;
        continue;
      }
      remove(row + 1);
      const Lanes team = lanes_.adders(size_);
      double total = 0.0;
      for (int i = team.index(); i < size_; i += team.count()) total += weights_[support_[i]];
      total = team.sum(total);
      lanes_.sync();
      for (int i = lanes_.index(); i < size_; i += lanes_.count()) {
        weights_[support_[i]] = total > 0.0 ? weights_[support_[i]] / total : 1.0 / size_;
      }
      lanes_.sync();
    }
  }

  MTLFAST_HD void drop(int position) {
    remove(position);
    if (position > 0) {
      refactor(position - 1);
      return;
    }
    const Lanes team = lanes_.adders(size_);
    double shortest = kHuge;
    int found = -1;
    for (int i = team.index(); i < size_; i += team.count()) {
      const double norm = norms_[support_[i]];
      if (!(norm < shortest)) continue;
      shortest = norm;
      found = i;
    }
    promote(team.index_of_smallest(shortest, found));
    refactor(0);
  }

  MTLFAST_HD bool enter(int task) {
    append(task);
    if (size_ > 1 && !factor_row(size_ - 2, kEnterPivot)) {
      --size_;
      return false;
    }
    set_role(task, kMember);
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
      find_nearest(tau, solution_);
      const Lanes team = lanes_.adders(size_);
      int blocking = -1;
      double step = 1.0;
      for (int i = team.index(); i < size_; i += team.count()) {
        if (solution_[i] > 0.0) continue;
        const double weight = weights_[support_[i]];
        const double ratio = weight > 0.0 ? weight / (weight - solution_[i]) : 0.0;
        if (blocking < 0 || ratio < step) {
          blocking = i;
          step = ratio;
        }
      }
      blocking = team.index_of_smallest(step, blocking);
      step = team.smallest(step);
      lanes_.sync();
      for (int i = lanes_.index(); i < size_; i += lanes_.count()) {
        double* weight = weights_ + support_[i];
        *weight = blocking < 0 ? solution_[i] : *weight + step * (solution_[i] - *weight);
        if (*weight < 0.0) *weight = 0.0;
      }
      lanes_.sync();
      if (blocking < 0) return;
      drop(blocking);
    }
  }

  // The task whose optimality condition fails by most beyond rounding, or -1.
  MTLFAST_HD int most_violating(double tau) {
    double* gradients = solution_;  // [K], in no other use between two rounds
    for (int j = lanes_.index(); j < num_tasks_; j += lanes_.count()) {
      if (role_[j] != kRefused && norms_[j] > 0.0) gradients[j] = gradient(j);
    }
    lanes_.sync();
    const Lanes team = lanes_.adders(size_);
    double level = 0.0;
    double spread = 0.0;
    double shift = 0.0;
    for (int i = team.index(); i < size_; i += team.count()) {
      const int member = support_[i];
      const double weight = weights_[member];
      level += weight * (gradients[member] + tau * linear(member));
      spread += weight * norms_[member];
      shift += weight * fabs(linear(member));
    }
    level = team.sum(level);
    spread = team.sum(spread);
    shift = team.sum(shift);
    const Lanes judges = lanes_.adders(num_tasks_);
    int worst = -1;
    double largest = 1.0;
    for (int j = judges.index(); j < num_tasks_; j += judges.count()) {
      if (role_[j] != kFree || !(norms_[j] > 0.0)) continue;
      const double violation = level - (gradients[j] + tau * linear(j));
      const double rounding =
          kViolation * ((norms_[j] + spread) * spread + tau * (fabs(linear(j)) + shift));
      if (violation > largest * rounding) {
        worst = j;
        largest = violation / rounding;
      }
    }
    worst = judges.index_of_smallest(-largest, worst);
    lanes_.sync();
    return worst;
  }

  int removals_;      // members that have left so far
  double* weights_;   // [K], zero off the support
  double* norms_;     // [K]
  double* solution_;  // [K], of which `size` are in use
  int* role_;         // [K]
};

}  // namespace mtlfast
