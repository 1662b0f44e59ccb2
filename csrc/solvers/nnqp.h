// Exact active-set solver of non-negative quadratic programmes on one Gramian,
//
//     min { z'Cz / 2 + q'z : z >= 0 },  C the cosines of the task gradients,
//
// for one linear term q after another. Optimal is z >= 0, y = q + Cz >= 0, z'y = 0. It is Lawson and
// Hanson's method: on a support S the minimiser solves C_SS z_S = -q_S, the most violating task
// enters, whoever would go negative leaves. The next q starts from the last support with z = 0,
// which is feasible whatever q is. Collective.
#pragma once

#include "solver.h"
#include "support_factor.h"

namespace mtlfast {

class NonNegativeQp {
 public:
  enum Outcome { kSolved, kUnbounded, kCapped };

  static MTLFAST_HD int64 workspace(int num_tasks) {
    const int64 count = num_tasks;
    return count * count + 5 * count + SupportFactor::workspace(num_tasks);
  }

  // `gramian` has rows `stride` apart. Tasks with a zero diagonal never enter.
  MTLFAST_HD NonNegativeQp(int num_tasks, const double* gramian, int stride, double* workspace,
                           Lanes lanes)
      : num_tasks_(num_tasks),
        removals_(0),
        linear_(nullptr),
        linear_scale_(0.0),
        norms_(workspace),
        solution_(norms_ + num_tasks),
        slopes_(solution_ + num_tasks),
        target_(slopes_ + num_tasks),
        cosines_(target_ + 2 * num_tasks),
        role_(reinterpret_cast<int*>(target_ + num_tasks)),  // doubles only ever used as int
        lanes_(lanes),
        support_(num_tasks, cosines_, cosines_ + static_cast<int64>(num_tasks) * num_tasks, lanes) {
    for (int i = lanes.index(); i < num_tasks; i += lanes.count()) {
      const double squared = gramian[static_cast<int64>(i) * stride + i];
      norms_[i] = squared > 0.0 ? sqrt(squared) : 0.0;
      role_[i] = squared > 0.0 ? kFree : kAbsent;
    }
    lanes.sync();
    // As many rows at a time as the lanes can fill.
    const int rows = lanes.count() > num_tasks ? lanes.count() / num_tasks : 1;
    const int first = lanes.count() > num_tasks ? lanes.index() / num_tasks : 0;
    const int column = lanes.index() - first * num_tasks;
    for (int i = first < rows ? first : num_tasks; i < num_tasks; i += rows) {
      const double* row = gramian + static_cast<int64>(i) * stride;
      double* cosine = cosines_ + static_cast<int64>(i) * num_tasks;
      for (int j = column; j < num_tasks; j += lanes.count()) {
        const bool absent = role_[i] == kAbsent || role_[j] == kAbsent;
        const double value = absent ? 0.0 : row[j] / norms_[i] / norms_[j];
        cosine[j] = value > 1.0 ? 1.0 : (value < -1.0 ? -1.0 : value);
      }
      const bool owned = i >= column && (i - column) % lanes.count() == 0;
      if (owned && role_[i] != kAbsent) cosine[i] = 1.0;
    }
    lanes.sync();
  }

  MTLFAST_HD const double* norms() const { return norms_; }
  MTLFAST_HD const double* cosines(int task) const {
    return cosines_ + static_cast<int64>(task) * num_tasks_;
  }
  MTLFAST_HD const double* solution() const { return solution_; }

  // Solves for q = `linear`, whose rounding errors are of the order of `linear_scale` epsilon.
  // `bounded`: q is in the range of C, so that no programme is unbounded and a task that depends on
  // the support violates its condition by rounding alone. On kUnbounded or kCapped the solution is
  // feasible all the same.
  MTLFAST_HD Outcome solve(const double* linear, double linear_scale, bool bounded) {
    linear_ = linear;
    linear_scale_ = linear_scale;
    bool wanted = false;
    for (int i = lanes_.index(); i < num_tasks_; i += lanes_.count()) {
      solution_[i] = 0.0;
      wanted = wanted || (role_[i] != kAbsent && linear[i] < -kViolation * linear_scale);
    }
    lanes_.sync();
    if (!lanes_.any(wanted)) return kSolved;
    release_refused();
    support_.load(linear);
    settle();
    const int patience = 2 * num_tasks_ + 16;
    for (int round = 0; round < 4 * patience; ++round) {
      const int entering = lanes_.count() == 1 ? most_violating_alone() : most_violating_together();
      if (entering < 0) return kSolved;
      const int removals_before = removals_;
      if (!enter(entering, bounded)) return kUnbounded;
      const bool left = role_[entering] != kMember;
      const int others_left = removals_ - removals_before - (left ? 1 : 0);
      if (others_left > 0 && round < patience) release_refused();
      if (left) set_role(entering, kRefused);  // rounding alone made it look useful
    }
    return kCapped;
  }

 private:
  enum Role { kFree, kMember, kRefused, kAbsent };

  static constexpr double kViolation = 16.0 * kEpsilon;  // of a slope, to the sum of its terms
  static constexpr double kDependent = 4.0 * kEpsilon;   // of the pivot of a unit vector
  static constexpr double kRayNoise = 1e-9;              // of a coefficient of a dependent task

  MTLFAST_HD void release_refused() {
    for (int i = lanes_.index(); i < num_tasks_; i += lanes_.count()) {
      if (role_[i] == kRefused) role_[i] = kFree;
    }
    lanes_.sync();
  }

  MTLFAST_HD void set_role(int task, Role role) {
    lanes_.sync();
    if (lanes_.first()) role_[task] = role;
    lanes_.sync();
  }

  // Returns the sum of the terms' magnitudes.
  MTLFAST_HD double write_slopes() {
    double magnitude = linear_scale_;
    for (int i = 0; i < num_tasks_; ++i) slopes_[i] = linear_[i];
    for (int k = 0; k < support_.size(); ++k) {
      const double value = solution_[support_.task(k)];
      const double* cosine = cosines(support_.task(k));
      for (int i = 0; i < num_tasks_; ++i) slopes_[i] += value * cosine[i];
      magnitude += value;
    }
    return magnitude;
  }

  // The free task with the most negative slope beyond rounding, or -1.
  MTLFAST_HD int most_violating_alone() {
    const double magnitude = write_slopes();
    int worst = -1;
    double lowest = -kViolation * magnitude;
    for (int i = 0; i < num_tasks_; ++i) {
      if (role_[i] == kFree && slopes_[i] < lowest) {
        worst = i;
        lowest = slopes_[i];
      }
    }
    return worst;
  }

  // The same, where each lane keeps the slopes of its tasks to itself.
  MTLFAST_HD int most_violating_together() const {
    int worst = -1;
    double lowest = 0.0;
    for (int i = lanes_.index(); i < num_tasks_; i += lanes_.count()) {
      double slope = linear_[i];
      double magnitude = linear_scale_;
      for (int k = 0; k < support_.size(); ++k) {
        const int task = support_.task(k);
        slope += solution_[task] * cosines(task)[i];
        magnitude += solution_[task];
      }
      if (role_[i] == kFree && slope < -kViolation * magnitude && (worst < 0 || slope < lowest)) {
        worst = i;
        lowest = slope;
      }
    }
    return lanes_.any(worst >= 0) ? lanes_.index_of_smallest(lowest, worst) : -1;
  }

  // From the current solution to the minimiser on the support; members that would go negative leave.
  MTLFAST_HD void settle() {
    while (true) {
      support_.solve(target_);
      int blocking = -1;
      double step = 1.0;
      for (int k = lanes_.index(); k < support_.size(); k += lanes_.count()) {
        if (target_[k] > 0.0) continue;
        const double value = solution_[support_.task(k)];
        const double ratio = value > 0.0 ? value / (value - target_[k]) : 0.0;
        if (blocking < 0 || ratio < step || (ratio == step && target_[k] < target_[blocking])) {
          blocking = k;
          step = ratio;
        }
      }
      if (lanes_.any(blocking >= 0)) {
        const double lowest = lanes_.smallest(step);
        if (step > lowest) blocking = -1;
        step = lowest;
        blocking = lanes_.index_of_smallest(blocking < 0 ? 0.0 : target_[blocking], blocking);
      }
      for (int k = lanes_.index(); k < support_.size(); k += lanes_.count()) {
        double* value = solution_ + support_.task(k);
        *value = blocking < 0 ? target_[k] : *value + step * (target_[k] - *value);
        if (*value < 0.0) *value = 0.0;
      }
      lanes_.sync();
      if (blocking < 0) return;
      remove(blocking);
      ++removals_;
    }
  }

  MTLFAST_HD void remove(int position) {
    if (lanes_.first()) {
      role_[support_.task(position)] = kFree;
      solution_[support_.task(position)] = 0.0;
    }
    lanes_.sync();
    support_.remove(position);
  }

  // Takes a violating task into the support, or refuses it. False: the objective falls without end
  // along a ray of solutions.
  MTLFAST_HD bool enter(int task, bool bounded) {
    double pivot = support_.eliminate(task);
    while (!(pivot > kDependent)) {
      if (bounded) return true;
      // Along the ray only the task's own slope counts, until a member reaches zero.
      support_.coefficients(target_);
      int blocking = -1;
      double step = kHuge;
      for (int k = lanes_.index(); k < support_.size(); k += lanes_.count()) {
        const double value = solution_[support_.task(k)];
        if (target_[k] > kRayNoise && value < step * target_[k]) {
          blocking = k;
          step = value / target_[k];
        }
      }
      blocking = lanes_.index_of_smallest(step, blocking);
      if (blocking < 0) return false;
      step = lanes_.smallest(step);
      for (int k = lanes_.index(); k < support_.size(); k += lanes_.count()) {
        double* value = solution_ + support_.task(k);
        *value -= step * target_[k];
        if (*value < 0.0) *value = 0.0;
      }
      if (lanes_.first()) solution_[task] += step;
      lanes_.sync();
      remove(blocking);
      pivot = support_.eliminate(task);
    }
    support_.append(task, pivot, -linear_[task]);
    set_role(task, kMember);
    settle();
    return true;
  }

  int num_tasks_;
  int removals_;  // members that have left so far
  const double* linear_;
  double linear_scale_;
  double* norms_;     // [K]
  double* solution_;  // [K], z, zero off the support
  double* slopes_;    // [K], y
  double* target_;    // [size], by position
  double* cosines_;   // [K, K]
  int* role_;         // [K]
  Lanes lanes_;
  SupportFactor support_;
};

}  // namespace mtlfast
