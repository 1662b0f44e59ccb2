// The affine hull of some of the rows of J, given G = J J' and b = J g0, and its point nearest to
// -tau g0.
//
// With members S and an anchor p among them a point of the hull is g_p + sum v_i (g_i - g_p). The v
// of the nearest one solve a linear system whose matrix, the Gramian of the differences, is positive
// definite as long as the members are affinely independent. Its Cholesky factor L grows by a row
// with each member and does not depend on tau.
#pragma once

#include "solver.h"

namespace mtlfast {

class AffineHull {
 public:
  static MTLFAST_HD int64 workspace(int num_tasks) {
    const int64 count = num_tasks;
    return count * count + 3 * count;
  }

  // Squared distance from the origin to the hull.
  MTLFAST_HD double hull_distance2() const {
    const Lanes team = lanes_.adders(size_ - 1);
    double value = team.first() ? product(support_[0], support_[0]) : 0.0;
    for (int i = team.index(); i + 1 < size_; i += team.count()) value -= offset_[i] * offset_[i];
    value = team.sum(value);
    return value > 0.0 ? value : 0.0;
  }

  // Squared length of the change of the nearest point per unit of tau.
  MTLFAST_HD double drift2() const {
    const Lanes team = lanes_.adders(size_ - 1);
    double value = 0.0;
    for (int i = team.index(); i + 1 < size_; i += team.count()) value += drift_[i] * drift_[i];
    return team.sum(value);
  }

 protected:
  // The only member is `start`. `linear` is b, or null where tau stays 0.
  MTLFAST_HD AffineHull(int num_tasks, const double* gramian, const double* linear, int start,
                        Lanes lanes, double* workspace)
      : num_tasks_(num_tasks), size_(1), gramian_(gramian), linear_(linear), lanes_(lanes) {
    offset_ = workspace;
    drift_ = offset_ + num_tasks;
    support_ =
        reinterpret_cast<int*>(drift_ + num_tasks);  // these doubles are only ever used as int
    factor_ = drift_ + 2 * num_tasks;
    if (lanes_.first()) support_[0] = start;
    lanes_.sync();
  }

  MTLFAST_HD double product(int i, int j) const {
    return gramian_[static_cast<int64>(i) * num_tasks_ + j];
  }

  MTLFAST_HD double linear(int i) const { return linear_ != nullptr ? linear_[i] : 0.0; }

  // A new last member, without its row of L.
  MTLFAST_HD void append(int task) {
    if (lanes_.first()) support_[size_] = task;
    lanes_.sync();
    ++size_;
  }

  // Takes the member at `position` out; the rows of L from its own on, of all where it was the
  // anchor, are no more.
  MTLFAST_HD void erase(int position) {
    --size_;
    for (int start = position; start < size_; start += lanes_.count()) {
      const int i = start + lanes_.index();
      const int next = i < size_ ? support_[i + 1] : 0;
      lanes_.sync();
      if (i < size_) support_[i] = next;
      lanes_.sync();
    }
  }

  // Makes the member at `position` the anchor; L is no more.
  MTLFAST_HD void promote(int position) {
    lanes_.sync();
    if (lanes_.first()) {
      const int task = support_[position];
      support_[position] = support_[0];
      support_[0] = task;
    }
    lanes_.sync();
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
      const Lanes team = lanes_.adders(i);
      double value = 0.0;
      if (team.first()) {
        value = (product(member, earlier) - cross) + (anchor2 - product(earlier, anchor));
      }
      for (int k = team.index(); k < i; k += team.count()) value -= line[k] * other[k];
      value = team.sum(value) / other[i];
      if (lanes_.first()) line[i] = value;
      lanes_.sync();
      pivot -= value * value;
      offset -= value * offset_[i];
      drift -= value * drift_[i];
    }
    if (!(pivot > smallest_pivot * (product(member, member) + anchor2))) return false;
    const double root = sqrt(pivot);
    if (lanes_.first()) {
      line[row] = root;
      offset_[row] = offset / root;
      drift_[row] = drift / root;
    }
    lanes_.sync();
    return true;
  }

  // solution[i]: coefficient of support_[i] in the nearest point; their sum is 1.
  MTLFAST_HD void find_nearest(double tau, double* solution) const {
    double others = 0.0;
    for (int i = size_ - 2; i >= 0; --i) {
      const Lanes team = lanes_.adders(size_ - 2 - i);
      double value = team.first() ? -(offset_[i] + tau * drift_[i]) : 0.0;
      for (int k = i + 1 + team.index(); k + 1 < size_; k += team.count()) {
        value -= factor_[static_cast<int64>(k) * num_tasks_ + i] * solution[k + 1];
      }
      value = team.sum(value) / factor_[static_cast<int64>(i) * num_tasks_ + i];
      if (lanes_.first()) solution[i + 1] = value;
      lanes_.sync();
      others += value;
    }
    if (lanes_.first()) solution[0] = size_ > 1 ? 1.0 - others : 1.0;
    lanes_.sync();
  }

  int num_tasks_;
  int size_;  // members
  const double* gramian_;
  const double* linear_;
  Lanes lanes_;
  double* offset_;  // [size - 1]
  double* drift_;   // [size - 1]
  double* factor_;  // [K, K], L in the lower triangle
  int* support_;    // [size], the anchor first
};

}  // namespace mtlfast
