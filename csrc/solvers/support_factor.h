// The Cholesky factor of the cosines of a support, C_SS = LL', and the solution of C_SS x = b with
// it, while tasks enter and leave. Both are backward stable, so that thousands of changes leave the
// residual of x within a few epsilon. Collective.
//
// One thread works row by row. The lanes of a warp wait for each other, not for arithmetic: they
// solve four unknowns at a time, each lane all four for itself, and take them off the others; and
// they find all rotations of a removal before they apply any.
#pragma once

#include "solver.h"

namespace mtlfast {

class SupportFactor {
 public:
  static MTLFAST_HD int64 workspace(int num_tasks) {
    const int64 count = num_tasks;
    return count * (count | 1) + 5 * count;
  }

  // `cosines` [K, K] has ones on the diagonal of every task that may enter.
  MTLFAST_HD SupportFactor(int num_tasks, const double* cosines, double* workspace, Lanes lanes)
      : num_tasks_(num_tasks),
        stride_(lanes.count() == 1 ? num_tasks : num_tasks | 1),
        size_(0),
        product_(0.0),
        cosines_(cosines),
        lanes_(lanes) {
    half_ = workspace;
    line_ = half_ + num_tasks;
    sines_ = line_ + num_tasks;
    inverse_ = sines_ + num_tasks;
    support_ =
        reinterpret_cast<int*>(inverse_ + num_tasks);  // these doubles are only ever used as int
    factor_ = inverse_ + 2 * num_tasks;
  }

  MTLFAST_HD int size() const { return size_; }
  MTLFAST_HD int task(int position) const { return support_[position]; }

  // The squared length of the part of `task` outside of the members' span: its pivot.
  MTLFAST_HD double eliminate(int task) {
    const double* cosine = cosines_ + static_cast<int64>(task) * num_tasks_;
    for (int i = lanes_.index(); i < size_; i += lanes_.count()) line_[i] = cosine[support_[i]];
    lanes_.sync();
    return lanes_.count() == 1 ? solve_lower_alone(line_, 0, size_)
                               : solve_lower_together(line_, 0, size_, half_);
  }

  // The coefficients, by position, of the task last eliminated.
  MTLFAST_HD void coefficients(double* x) const { solve_upper(line_, x); }

  // Appends the task last eliminated, with its positive pivot and its entry of b.
  MTLFAST_HD void append(int task, double pivot, double b) {
    const double root = sqrt(pivot);
    const double product = lanes_.count() == 1 ? dot(line_, half_, size_) : product_;
    for (int k = lanes_.index(); k < size_; k += lanes_.count()) upper(k)[size_] = line_[k];
    if (lanes_.first()) {
      upper(size_)[size_] = root;
      inverse_[size_] = 1.0 / root;
      half_[size_] = (b - product) * inverse_[size_];
      support_[size_] = task;
    }
    ++size_;
    lanes_.sync();
  }

  // Takes the member's column out of L' and rotates the rows below it back into a triangle.
  MTLFAST_HD void remove(int position) {
    --size_;
    if (lanes_.count() == 1) {
      remove_alone(position);
    } else {
      remove_together(position);
    }
  }

  // Takes b = -linear.
  MTLFAST_HD void load(const double* linear) {
    for (int i = lanes_.index(); i < size_; i += lanes_.count()) half_[i] = -linear[support_[i]];
    lanes_.sync();
    if (lanes_.count() == 1) {
      solve_lower_alone(half_, 0, size_);
    } else {
      solve_lower_together(half_, 0, size_, nullptr);
    }
  }

  // C_SS^-1 b, by position.
  MTLFAST_HD void solve(double* x) const { solve_upper(half_, x); }

 private:
  static constexpr int kBlock = 4;  // unknowns that the lanes solve between two syncs

  MTLFAST_HD double* upper(int row) const { return factor_ + static_cast<int64>(row) * stride_; }

  MTLFAST_HD void remove_alone(int position) {
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

  // The row v of the leaving member is rotated into the triangle T below it, T'T + vv'. With
  // w = T^-T v and t_k = 1 + w_0^2 + .. + w_k^2 (Gill, Golub, Murray and Saunders 1974), rotation k
  // has the cosine w_k / sqrt(t_k) and the sine sqrt(t_k-1 / t_k). Then a lane turns a whole column.
  MTLFAST_HD void remove_together(int position) {
    const int first = position + 1;  // of the rows of T
    const int old_size = size_ + 1;
    const int step = lanes_.count();
    for (int i = first + lanes_.index(); i < old_size; i += step) line_[i] = upper(position)[i];
    lanes_.sync();
    solve_lower_together(line_, first, old_size, nullptr);
    for (int k = first + lanes_.index(); k < old_size; k += step) {
      double before = 1.0;
      for (int j = first; j < k; ++j) before += line_[j] * line_[j];
      const double inverse_root = 1.0 / sqrt(before + line_[k] * line_[k]);
      sines_[k] = sqrt(before) * inverse_root;
      inverse_[k - 1] = line_[k] * inverse_root;  // the cosine, until the diagonal is known
    }
    lanes_.sync();
    // Columns first .. old_size - 1 of the factor, then b.
    for (int i = first + lanes_.index(); i <= old_size; i += step) {
      double* column = i < old_size ? factor_ + i : half_;
      const int64 stride = i < old_size ? stride_ : 1;
      const int end = i < old_size ? i + 1 : old_size;
      double above = column[position * stride];
      for (int k = first; k < end; ++k) {
        const double below = column[k * stride];
        const double cosine = inverse_[k - 1];
        const double sine = sines_[k];
        column[(k - 1) * stride] = cosine * above + sine * below;
        above = sine * above - cosine * below;
      }
    }
    lanes_.sync();
    for (int k = lanes_.index(); k < size_; k += step) {
      double* row = upper(k);
      for (int i = k > position ? k : position; i < size_; ++i) row[i] = row[i + 1];
      if (k >= position) inverse_[k] = 1.0 / row[k];
    }
    for (int base = position; base < size_; base += step) {
      const int k = base + lanes_.index();
      const int task = k < size_ ? support_[k + 1] : 0;
      lanes_.sync();
      if (k < size_) support_[k] = task;
    }
    lanes_.sync();
  }

  // x = L^-1 x of the rows and columns first .. end - 1; returns 1 - |x|^2.
  MTLFAST_HD double solve_lower_alone(double* x, int first, int end) const {
    double rest = 1.0;
    for (int k = first; k < end; ++k) {
      const double* row = upper(k);
      const double value = x[k] * inverse_[k];
      x[k] = value;
      for (int i = k + 1; i < end; ++i) x[i] -= value * row[i];
      rest -= value * value;
    }
    return rest;
  }

  // The same, with x'other for append() where there is another.
  MTLFAST_HD double solve_lower_together(double* x, int first, int end, const double* other) {
    double rest = 1.0;
    product_ = 0.0;
    for (int k = first; k < end; k += kBlock) {
      double values[kBlock];
      for (int a = 0; a < kBlock; ++a) {
        const bool inside = k + a < end;
        double value = inside ? x[k + a] : 0.0;
        for (int b = 0; b < a; ++b) value -= inside ? values[b] * upper(k + b)[k + a] : 0.0;
        values[a] = inside ? value * inverse_[k + a] : 0.0;
        rest -= values[a] * values[a];
        if (other != nullptr && inside) product_ += values[a] * other[k + a];
      }
      for (int i = k + kBlock + lanes_.index(); i < end; i += lanes_.count()) {
        double value = x[i];
        for (int b = 0; b < kBlock; ++b) value -= values[b] * upper(k + b)[i];
        x[i] = value;
      }
      lanes_.sync();
      for (int a = 0; a < kBlock; ++a) {
        if (lanes_.first() && k + a < end) x[k + a] = values[a];
      }
    }
    lanes_.sync();
    return rest;
  }

  // x = L'^-1 right.
  MTLFAST_HD void solve_upper(const double* right, double* x) const {
    if (lanes_.count() == 1) {
      solve_upper_alone(right, x);
    } else {
      solve_upper_together(right, x);
    }
  }

  MTLFAST_HD void solve_upper_alone(const double* right, double* x) const {
    for (int k = size_ - 1; k >= 0; --k) {
      x[k] = (right[k] - dot(upper(k) + k + 1, x + k + 1, size_ - k - 1)) * inverse_[k];
    }
  }

  MTLFAST_HD void solve_upper_together(const double* right, double* x) const {
    for (int i = lanes_.index(); i < size_; i += lanes_.count()) x[i] = right[i];
    lanes_.sync();
    for (int k = size_ - 1; k >= 0; k -= kBlock) {
      double values[kBlock];
      for (int a = 0; a < kBlock; ++a) {
        const bool inside = k - a >= 0;
        double value = inside ? x[k - a] : 0.0;
        for (int b = 0; b < a; ++b) value -= inside ? values[b] * upper(k - a)[k - b] : 0.0;
        values[a] = inside ? value * inverse_[k - a] : 0.0;
      }
      for (int i = lanes_.index(); i <= k - kBlock; i += lanes_.count()) {
        double value = x[i];
        for (int b = 0; b < kBlock; ++b) value -= values[b] * upper(i)[k - b];
        x[i] = value;
      }
      lanes_.sync();
      for (int a = 0; a < kBlock; ++a) {
        if (lanes_.first() && k - a >= 0) x[k - a] = values[a];
      }
    }
    lanes_.sync();
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
  int stride_;  // between rows of the factor: odd for lanes, whose columns then differ in their banks
  int size_;    // members of the support
  double product_;  // of the task last eliminated, line'half, where lanes found it
  const double* cosines_;
  double* half_;     // [size], L^-1 b
  double* line_;     // [size], L^-1 C_Sj of the task last eliminated
  double* sines_;    // [size], of rotations
  double* inverse_;  // [size], 1 / the diagonal of L
  double* factor_;   // [K, K], L' in the upper triangle
  int* support_;     // [size]
  Lanes lanes_;
};

}  // namespace mtlfast
