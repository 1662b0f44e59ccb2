// The Cholesky factor of the cosines of a support, C_SS = LL', and the solution of C_SS x = b with
// it, while tasks enter and leave. Both are backward stable, so that thousands of changes leave the
// residual of x within a few epsilon.
#pragma once

#include "solver.h"

namespace mtlfast {

class SupportFactor {
 public:
  static MTLFAST_HD int64 workspace(int num_tasks) {
    const int64 count = num_tasks;
    return count * count + 4 * count;
  }

  // `cosines` [K, K] has ones on the diagonal of every task that may enter.
  MTLFAST_HD SupportFactor(int num_tasks, const double* cosines, double* workspace)
      : num_tasks_(num_tasks), size_(0), cosines_(cosines) {
    half_ = workspace;
    line_ = half_ + num_tasks;
    inverse_ = line_ + num_tasks;
    support_ =
        reinterpret_cast<int*>(inverse_ + num_tasks);  // these doubles are only ever used as int
    factor_ = inverse_ + 2 * num_tasks;
  }

  MTLFAST_HD int size() const { return size_; }
  MTLFAST_HD int task(int position) const { return support_[position]; }

  // The squared length of the part of `task` outside of the members' span: its pivot.
  MTLFAST_HD double eliminate(int task) {
    const double* cosine = cosines_ + static_cast<int64>(task) * num_tasks_;
    for (int i = 0; i < size_; ++i) line_[i] = cosine[support_[i]];
    double pivot = 1.0;
    for (int k = 0; k < size_; ++k) {
      const double* row = upper(k);
      const double value = line_[k] * inverse_[k];
      line_[k] = value;
      for (int i = k + 1; i < size_; ++i) line_[i] -= value * row[i];
      pivot -= value * value;
    }
    return pivot;
  }

  // The coefficients, by position, of the task last eliminated.
  MTLFAST_HD void coefficients(double* x) const { solve_upper(line_, x); }

  // Appends the task last eliminated, with its positive pivot and its entry of b.
  MTLFAST_HD void append(int task, double pivot, double b) {
    const double root = sqrt(pivot);
    for (int k = 0; k < size_; ++k) upper(k)[size_] = line_[k];
    upper(size_)[size_] = root;
    inverse_[size_] = 1.0 / root;
    half_[size_] = (b - dot(line_, half_, size_)) * inverse_[size_];
    support_[size_++] = task;
  }

  // Takes the member's column out of L' and rotates the rows below it back into a triangle.
  MTLFAST_HD void remove(int position) {
    --size_;
    for (int k = position; k < size_; ++k) support_[k] = support_[k + 1];
    for (int k = 0; k < position; ++k) {
      double* row = upper(k);
      for (int i = position; i < size_; ++i) row[i] = row[i + 1];
    }
    for (int k = position; k < size_; ++k) {
      double* row = upper(k);
      double* next = upper(k + 1);
      const double root = sqrt(row[k + 1] * row[k + 1] + next[k + 1] * next[k + 1]);
      const double cosine = row[k + 1] / root;
      const double sine = next[k + 1] / root;
      for (int i = k; i < size_; ++i) {
        const double above = row[i + 1];
        const double below = next[i + 1];
        row[i] = cosine * above + sine * below;
        next[i + 1] = cosine * below - sine * above;
      }
      const double above = half_[k];
      const double below = half_[k + 1];
      half_[k] = cosine * above + sine * below;
      half_[k + 1] = cosine * below - sine * above;
      inverse_[k] = 1.0 / root;
    }
  }

  // Takes b = -linear.
  MTLFAST_HD void load(const double* linear) {
    for (int i = 0; i < size_; ++i) half_[i] = -linear[support_[i]];
    for (int k = 0; k < size_; ++k) {
      const double* row = upper(k);
      half_[k] *= inverse_[k];
      for (int i = k + 1; i < size_; ++i) half_[i] -= half_[k] * row[i];
    }
  }

  // C_SS^-1 b, by position.
  MTLFAST_HD void solve(double* x) const { solve_upper(half_, x); }

 private:
  MTLFAST_HD double* upper(int row) const { return factor_ + static_cast<int64>(row) * num_tasks_; }

  MTLFAST_HD void solve_upper(const double* right, double* x) const {
    for (int k = size_ - 1; k >= 0; --k) {
      x[k] = (right[k] - dot(upper(k) + k + 1, x + k + 1, size_ - k - 1)) * inverse_[k];
    }
  }

  // Four sums side by side: a single one would wait for itself at every step.
  static MTLFAST_HD double dot(const double* a, const double* b, int count) {
    double sums[4] = {0.0, 0.0, 0.0, 0.0};
    int i = 0;
    for (; i + 3 < count; i += 4) {
      for (int lane = 0; lane < 4; ++lane) sums[lane] += a[i + lane] * b[i + lane];
    }
    for (; i < count; ++i) sums[0] += a[i] * b[i];
    return (sums[0] + sums[1]) + (sums[2] + sums[3]);
  }

  int num_tasks_;
  int size_;  // members of the support
  const double* cosines_;
  double* half_;     // [size], L^-1 b
  double* line_;     // [size], L^-1 C_Sj of the task last eliminated
  double* inverse_;  // [size], 1 / the diagonal of L
  double* factor_;   // [K, K], L' in the upper triangle
  int* support_;     // [size]
};

}  // namespace mtlfast
