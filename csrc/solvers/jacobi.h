// Factor, solves and eigenpairs of a Gramian, or of the cosine matrix of its tasks.
//
// The matrix A is factored as L L' by Cholesky with diagonal pivoting. A task whose pivot is rounding
// beside its own diagonal entry depends on the tasks before it and gets no column, so that the
// number of columns is the rank. Rotations of pairs of columns (one-sided Jacobi, Veselic and Hari,
// Numer. Math. 56, 1989) then make the columns orthogonal: their directions are A's eigenvectors and
// their squared lengths its eigenvalues. Each column is rounded relative to its own length only, so
// that eigenvalues over many decades keep their digits as long as the cosines are well conditioned,
// which no solver that works on A itself can promise.
#pragma once

#include "solver.h"

namespace mtlfast {

class Spectrum {
 public:
  static MTLFAST_HD int64 workspace(int num_tasks) {
    const int64 count = num_tasks;
    return count * count + 3 * count;
  }

  // Factors A = S G S with S = diag(scales), or G itself where `scales` is null. Tasks whose
  // diagonal entry is not positive stay out: their rows of L are zero.
  MTLFAST_HD Spectrum(int num_tasks, const double* gramian, const double* scales, double* workspace)
      : num_tasks_(num_tasks), rank_(0), num_alive_(0) {
    columns_ = workspace;
    values_ = columns_ + static_cast<int64>(num_tasks) * num_tasks;
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
      values_[k] = right[pivots_[k]] / own[pivots_[k]];
      subtract(values_[k], own, right);
    }
    fill(solution, num_tasks_, 0.0, kOk);
    for (int k = rank_ - 1; k >= 0; --k) {
      const double* own = column(k);
      solution[pivots_[k]] = (values_[k] - dot(own, solution)) / own[pivots_[k]];
    }
  }

  // Makes the columns orthogonal. False: the cap on sweeps was hit.
  MTLFAST_HD bool diagonalise() {
    const double tolerance = kEpsilon * (4.0 + 0.125 * num_tasks_);  // the rounding of a cosine
    for (int sweep = 0; sweep < kMaxSweeps; ++sweep) {
      bool rotated = false;
      for (int k = 0; k < rank_; ++k) values_[k] = dot(column(k), column(k));
      for (int p = 0; p + 1 < rank_; ++p) {
        for (int q = p + 1; q < rank_; ++q) {
          const double product = dot(column(p), column(q));
          if (!(fabs(product) > tolerance * sqrt(values_[p] * values_[q]))) continue;
          rotate(p, q, product);
          rotated = true;
        }
      }
      if (!rotated) return true;
    }
    return false;
  }

  // Eigenpair k < rank(), in no order, after diagonalise(): the eigenvalue, and the eigenvector
  // times its square root.
  MTLFAST_HD double value(int k) const { return values_[k]; }
  MTLFAST_HD double* column(int k) const { return columns_ + static_cast<int64>(k) * num_tasks_; }

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
    for (int i = 0; i < num_tasks_; ++i) target[i] -= factor * from[i];
  }

  MTLFAST_HD void factor(const double* gramian, const double* scales) {
    double* remaining = values_;  // the diagonal of A - L L'
    for (int i = 0; i < num_tasks_; ++i) {
      double entry = gramian[static_cast<int64>(i) * num_tasks_ + i];
      if (!(entry > 0.0)) entry = 0.0;
      if (scales != nullptr) entry *= scales[i] * scales[i];
      if (entry > 0.0) ++num_alive_;
      diagonal_[i] = entry;
      remaining[i] = entry;
    }
    const double tolerance = kDependent * num_tasks_;
    for (; rank_ < num_alive_; ++rank_) {
      int pivot = -1;
      for (int i = 0; i < num_tasks_; ++i) {
        if (!(remaining[i] > tolerance * diagonal_[i])) continue;
        if (pivot < 0 || remaining[i] > remaining[pivot]) pivot = i;
      }
      if (pivot < 0) return;
      const double root = sqrt(remaining[pivot]);
      const double* row = gramian + static_cast<int64>(pivot) * num_tasks_;
      double* own = column(rank_);
      for (int i = 0; i < num_tasks_; ++i) {
        own[i] = diagonal_[i] > 0.0 ? row[i] : 0.0;
        if (scales != nullptr) own[i] *= scales[pivot] * scales[i];
      }
      for (int k = 0; k < rank_; ++k) subtract(column(k)[pivot], column(k), own);
      const double inverse = 1.0 / root;
      for (int i = 0; i < num_tasks_; ++i) {
        own[i] *= inverse;
        remaining[i] -= own[i] * own[i];
      }
      own[pivot] = root;  // at earlier pivots the column holds rounding: no more than G itself does
      pivots_[rank_] = pivot;
      for (int k = 0; k <= rank_; ++k) remaining[pivots_[k]] = 0.0;
    }
  }

  // Turns the columns p and q by the smaller of the two angles that make them orthogonal.
  MTLFAST_HD void rotate(int p, int q, double product) {
    const double ratio = (values_[q] - values_[p]) / (2.0 * product);
    const double size = fabs(ratio) + sqrt(1.0 + ratio * ratio);
    const double tangent = ratio >= 0.0 ? 1.0 / size : -1.0 / size;
    const double cosine = 1.0 / sqrt(1.0 + tangent * tangent);
    const double sine = cosine * tangent;
    double* first = column(p);
    double* second = column(q);
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
  int rank_;
  int num_alive_;     // tasks in the solve
  double* columns_;   // [rank, K]: the columns of L, then of the rotated L
  double* values_;    // [K]
  double* diagonal_;  // [K], of A
  int* pivots_;       // [rank]: the task of each column of L
};

}  // namespace mtlfast
