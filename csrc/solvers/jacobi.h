// Factor, solves and eigenpairs of a Gramian, or of the cosine matrix of its tasks.
//
// The matrix A is factored as L L' by Cholesky with diagonal pivoting. A task whose pivot is rounding
// beside its own diagonal entry depends on the tasks before it and gets no column, so that the
// number of columns is the rank. Rotations of pairs of columns (one-sided Jacobi, Veselic and Hari,
// Numer. Math. 56, 1989) then make the columns orthogonal: their directions are A's eigenvectors and
// their squared lengths its eigenvalues. Each column is rounded relative to its own length only, so
// that eigenvalues over many decades keep their digits as long as the cosines are well conditioned,
// which no solver that works on A itself can promise.
//
// Pairs whose indices have the same sum share no column, so that one lane can turn each; in the order
// of the sums the result is that of going through the pairs row by row.
#pragma once

#include "solver.h"

namespace mtlfast {

class Spectrum {
 public:
  static MTLFAST_HD int64 workspace(int num_tasks) {
    const int64 count = num_tasks;
    return count * (count + 1) + 3 * count;
  }

  // Factors A = S G S with S = diag(scales), or G itself where `scales` is null. Tasks whose
  // diagonal entry is not positive stay out: their rows of L are zero.
  MTLFAST_HD Spectrum(int num_tasks, const double* gramian, const double* scales, Lanes lanes,
                      double* workspace)
      : num_tasks_(num_tasks), stride_(num_tasks), rank_(0), num_alive_(0), lanes_(lanes) {
    // An odd distance lets the lanes read columns of their own from different memory banks.
    if (lanes_.count() > 1) stride_ |= 1;
    columns_ = workspace;
    values_ = columns_ + static_cast<int64>(num_tasks) * (num_tasks + 1);
    diagonal_ = values_ + num_tasks;
    pivots_ = reinterpret_cast<int*>(diagonal_ + num_tasks);  // these doubles are only used as int
    factor(gramian, scales);
  }

  MTLFAST_HD int rank() const { return rank_; }
  MTLFAST_HD bool full_rank() const { return rank_ == num_alive_; }
  MTLFAST_HD int num_alive() const { return num_alive_; }

  // A solution = right for the tasks in the solve, where their rank is full and diagonalise() has
  // not been called; 0 for the others. `right` is used up.
  MTLFAST_HD void solve(double* right, double* solution) {
    for (int k = 0; k < rank_; ++k) {
      const double* own = column(k);
      const double value = right[pivots_[k]] / own[pivots_[k]];
      lanes_.sync();
      if (lanes_.first()) values_[k] = value;
      subtract(value, own, right);
      lanes_.sync();
    }
    fill(solution, num_tasks_, 0.0, kOk, lanes_);
    for (int k = rank_ - 1; k >= 0; --k) {
      const double* own = column(k);
      const double value = (values_[k] - dot(own, solution)) / own[pivots_[k]];
      lanes_.sync();
      if (lanes_.first()) solution[pivots_[k]] = value;
      lanes_.sync();
    }
  }

  // Makes the columns orthogonal. False: the cap on sweeps was hit.
  MTLFAST_HD bool diagonalise() {
    const double tolerance = kEpsilon * (4.0 + 0.125 * num_tasks_);  // the rounding of a cosine
    for (int sweep = 0; sweep < kMaxSweeps; ++sweep) {
      for (int k = lanes_.index(); k < rank_; k += lanes_.count()) {
        values_[k] = dot(column(k), column(k));
      }
      lanes_.sync();
      bool rotated = false;
      for (int sum = 1; sum <= 2 * rank_ - 3; ++sum) {
        const int first = sum < rank_ ? 0 : sum - rank_ + 1;
        for (int p = first + lanes_.index(); 2 * p < sum; p += lanes_.count()) {
          const int q = sum - p;
          const double product = dot(column(p), column(q));
          if (!(fabs(product) > tolerance * sqrt(values_[p] * values_[q]))) continue;
          rotate(p, q, product);
          rotated = true;
        }
        lanes_.sync();
      }
      if (!lanes_.any(rotated)) return true;
    }
    return false;
  }

  // Eigenpair k < rank(), in no order, after diagonalise(): the eigenvalue, and the eigenvector
  // times its square root.
  MTLFAST_HD double value(int k) const { return values_[k]; }
  MTLFAST_HD double* column(int k) const { return columns_ + static_cast<int64>(k) * stride_; }

  // By the calling lane alone: its four chains are about as fast as an exchange.
  MTLFAST_HD double dot(const double* a, const double* b) const {
    double sums[4] = {0.0, 0.0, 0.0, 0.0};
    int i = 0;
    for (; i + 4 <= num_tasks_; i += 4) {
      for (int lane = 0; lane < 4; ++lane) sums[lane] += a[i + lane] * b[i + lane];
    }
    for (; i < num_tasks_; ++i) sums[0] += a[i] * b[i];
    return (sums[0] + sums[1]) + (sums[2] + sums[3]);
  }

 private:
  static constexpr int kMaxSweeps = 40;
  static constexpr double kDependent = 4.0 * kEpsilon;  // of a pivot, to K times its diagonal

  MTLFAST_HD void subtract(double factor, const double* from, double* target) const {
    for (int i = lanes_.index(); i < num_tasks_; i += lanes_.count()) {
      target[i] -= factor * from[i];
    }
  }

  MTLFAST_HD void factor(const double* gramian, const double* scales) {
    double* remaining = values_;  // the diagonal of A - L L'
    double alive = 0.0;
    for (int i = lanes_.index(); i < num_tasks_; i += lanes_.count()) {
      double entry = gramian[static_cast<int64>(i) * num_tasks_ + i];
      if (!(entry > 0.0)) entry = 0.0;
      if (scales != nullptr) entry *= scales[i] * scales[i];
      if (entry > 0.0) alive += 1.0;
      diagonal_[i] = entry;
      remaining[i] = entry;
    }
    num_alive_ = static_cast<int>(lanes_.sum(alive));
    lanes_.sync();
    for (; rank_ < num_alive_; ++rank_) {
      const int pivot = next_pivot(remaining);
      if (pivot < 0) return;
      const double root = sqrt(remaining[pivot]);
      const double* row = gramian + static_cast<int64>(pivot) * num_tasks_;
      double* own = column(rank_);
      for (int i = lanes_.index(); i < num_tasks_; i += lanes_.count()) {
        own[i] = diagonal_[i] > 0.0 ? row[i] : 0.0;
        if (scales != nullptr) own[i] *= scales[pivot] * scales[i];
      }
      for (int k = 0; k < rank_; ++k) subtract(column(k)[pivot], column(k), own);
      lanes_.sync();
      const double inverse = 1.0 / root;
      for (int i = lanes_.index(); i < num_tasks_; i += lanes_.count()) {
        own[i] *= inverse;
        remaining[i] -= own[i] * own[i];
        // At earlier pivots the column holds rounding: no more than G itself does.
        if (i == pivot) own[i] = root;
      }
      if (lanes_.first()) pivots_[rank_] = pivot;
      lanes_.sync();
      for (int k = lanes_.index(); k <= rank_; k += lanes_.count()) remaining[pivots_[k]] = 0.0;
      lanes_.sync();
    }
  }

  // The independent task with the largest remainder, or -1.
  MTLFAST_HD int next_pivot(const double* remaining) const {
    const double tolerance = kDependent * num_tasks_;
    const Lanes team = lanes_.adders(num_tasks_);
    double largest = 0.0;
    int pivot = -1;
    for (int i = team.index(); i < num_tasks_; i += team.count()) {
      if (!(remaining[i] > tolerance * diagonal_[i])) continue;
      if (pivot >= 0 && !(remaining[i] > largest)) continue;
      largest = remaining[i];
      pivot = i;
    }
    pivot = team.index_of_smallest(-largest, pivot);
    lanes_.sync();
    return pivot;
  }

  // Turns the columns p and q by the smaller of the two angles that make them orthogonal; by the
  // calling lane alone.
  MTLFAST_HD void rotate(int p, int q, double product) {
    const double ratio = (values_[q] - values_[p]) / (2.0 * product);
    const double size = fabs(ratio) + sqrt(1.0 + ratio * ratio);
    const double tangent = ratio >= 0.0 ? 1.0 / size : -1.0 / size;
    const double cosine = 1.0 / sqrt(1.0 + tangent * tangent);
    const double sine = cosine * tangent;
    double* __restrict__ first = column(p);
    double* __restrict__ second = column(q);
    for (int i = 0; i < num_tasks_; ++i) {
      const double x = first[i];
      const double y = second[i];
      first[i] = cosine * x - sine * y;
      second[i] = sine * x + cosine * y;
    }
    values_[p] -= tangent * product;
    values_[q] += tangent * product;
  }

  int num_tasks_;
  int stride_;  // between columns
  int rank_;
  int num_alive_;  // tasks in the solve
  Lanes lanes_;
  double* columns_;   // [rank, K]: the columns of L, then of the rotated L
  double* values_;    // [K]
  double* diagonal_;  // [K], of A
  int* pivots_;       // [rank]: the task of each column of L
};

}  // namespace mtlfast
