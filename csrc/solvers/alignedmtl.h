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

namespace mtlfast {

struct AlignedMtl {
  static constexpr bool collective = true;
  static constexpr int num_options = 1;
  static MTLFAST_HD int64 state_size(int) { return 0; }
  static MTLFAST_HD int64 workspace(int num_tasks) {
    return 2 * num_tasks + Spectrum::workspace(num_tasks);
  }

  static MTLFAST_HD int run(const SolveArgs& args) {
    const int num_tasks = args.num_tasks;
    const Lanes lanes = args.lanes;
    double* preference = args.workspace;
    double* values = preference + num_tasks;
    for (int i = lanes.index(); i < num_tasks; i += lanes.count()) {
      preference[i] = args.inputs != nullptr ? args.inputs[i] : 1.0 / num_tasks;
    }
    lanes.sync();
    Spectrum spectrum(num_tasks, args.gramian, nullptr, lanes, values + num_tasks);
    const bool converged = spectrum.diagonalise();
    const Lanes team = lanes.adders(spectrum.rank());
    double largest = 0.0;
    for (int k = team.index(); k < spectrum.rank(); k += team.count()) {
      if (spectrum.value(k) > largest) largest = spectrum.value(k);
    }
    const double floor = num_tasks * kEpsilon * team.largest(largest);
    int rank = 0;
    for (int k = 0; k < spectrum.rank(); ++k) {
      if (!(spectrum.value(k) > floor)) continue;
      if (lanes.first()) values[rank] = spectrum.value(k);
      ++rank;
    }
    lanes.sync();
    if (rank == 0) return give(preference, args, kDegenerate);
    const double level = choose_level(values, rank, args.options[0], lanes);

    double* factors = values;
    for (int k = lanes.index(); k < spectrum.rank(); k += lanes.count()) {
      const double value = spectrum.value(k);
      factors[k] = sqrt(level / value) * (spectrum.dot(spectrum.column(k), preference) / value);
    }
    fill(args.weights, num_tasks, 0.0, kOk, lanes);
    for (int k = 0; k < spectrum.rank(); ++k) {
      if (!(spectrum.value(k) > floor)) continue;
      const double* column = spectrum.column(k);
      for (int i = lanes.index(); i < num_tasks; i += lanes.count()) {
        args.weights[i] += factors[k] * column[i];
      }
    }
    lanes.sync();
    // Only a matrix that is no Gramian overflows.
    if (!all_finite(args.weights, num_tasks, lanes)) return give(preference, args, kDegenerate);
    return converged ? kOk : kNotConverged;
  }

 private:
  static MTLFAST_HD int give(const double* values, const SolveArgs& args, int status) {
    for (int i = args.lanes.index(); i < args.num_tasks; i += args.lanes.count()) {
      args.weights[i] = values[i];
    }
    args.lanes.sync();
    return status;
  }

  static MTLFAST_HD double choose_level(const double* values, int rank, double scale, Lanes lanes) {
    if (scale != 2.0) return entry_at(values, rank, scale == 1.0 ? (rank - 1) / 2 : 0, lanes);
    const Lanes team = lanes.adders(rank);
    double total = 0.0;
    for (int k = team.index(); k < rank; k += team.count()) total += values[k];
    total = team.sum(total) / rank;
    lanes.sync();
    return total;
  }

  // What stands at `place` in ascending order.
  static MTLFAST_HD double entry_at(const double* values, int count, int place, Lanes lanes) {
    double found = 0.0;
    for (int k = lanes.index(); k < count; k += lanes.count()) {
      int before = 0;
      for (int j = 0; j < count; ++j) {
        if (values[j] < values[k] || (values[j] == values[k] && j < k)) ++before;
      }
      if (before == place) found = values[k];
    }
    lanes.sync();
    return lanes.largest(found);
  }
};

}  // namespace mtlfast
