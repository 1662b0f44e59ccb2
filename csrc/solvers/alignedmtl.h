// Aligned-MTL (Senushkin et al., CVPR 2023, arXiv 2305.19000): the principal components of the task
// gradients, all brought to one length.
//
// With G = V diag(lambda) V' on its rank, the weights are sqrt(level) V diag(lambda^-1/2) V' p, so
// that the aligned gradients have the Gramian level * V V': condition number 1. The level is the
// smallest eigenvalue, the (lower) median, or the mean. An eigenvalue counts where it is above
// K epsilon times the largest. Without any, the weights are p (kDegenerate).
//
// options: scale (0: smallest eigenvalue, 1: lower median, 2: mean).
// inputs:  the preference p, or null for 1/K each.
#pragma once

#include "jacobi.h"
#include "solver.h"
#include "sort.h"

namespace mtlfast {

struct AlignedMtl {
  static constexpr int num_options = 1;
  static MTLFAST_HD int64 state_size(int) { return 0; }
  static MTLFAST_HD int64 workspace(int num_tasks) {
    return 2 * num_tasks + Spectrum::workspace(num_tasks);
  }

  static MTLFAST_HD int run(const SolveArgs& args) {
    const int num_tasks = args.num_tasks;
    double* preference = args.workspace;
    double* values = preference + num_tasks;
    for (int i = 0; i < num_tasks; ++i) {
      preference[i] = args.inputs != nullptr ? args.inputs[i] : 1.0 / num_tasks;
    }
    Spectrum spectrum(num_tasks, args.gramian, nullptr, values + num_tasks);
    const bool converged = spectrum.diagonalise();
    double largest = 0.0;
    for (int k = 0; k < spectrum.rank(); ++k) {
      if (spectrum.value(k) > largest) largest = spectrum.value(k);
    }
    const double floor = num_tasks * kEpsilon * largest;
    int rank = 0;
    for (int k = 0; k < spectrum.rank(); ++k) {
      if (spectrum.value(k) > floor) values[rank++] = spectrum.value(k);
    }
    if (rank == 0) return give(preference, args, kDegenerate);
    const double level = choose_level(values, rank, args.options[0]);

    fill(args.weights, num_tasks, 0.0, kOk);
    for (int k = 0; k < spectrum.rank(); ++k) {
      const double value = spectrum.value(k);
      if (!(value > floor)) continue;
      const double* column = spectrum.column(k);
      const double factor = sqrt(level / value) * (spectrum.dot(column, preference) / value);
      for (int i = 0; i < num_tasks; ++i) args.weights[i] += factor * column[i];
    }
    // Only a matrix that is no Gramian overflows.
    if (!all_finite(args.weights, num_tasks)) return give(preference, args, kDegenerate);
    return converged ? kOk : kNotConverged;
  }

 private:
  static MTLFAST_HD int give(const double* values, const SolveArgs& args, int status) {
    for (int i = 0; i < args.num_tasks; ++i) args.weights[i] = values[i];
    return status;
  }

  static MTLFAST_HD double choose_level(double* values, int rank, double scale) {
    if (scale == 2.0) {
      double total = 0.0;
      for (int k = 0; k < rank; ++k) total += values[k];
      return total / rank;
    }
    sort_ascending(values, rank);
    return scale == 1.0 ? values[(rank - 1) / 2] : values[0];
  }
};

}  // namespace mtlfast
