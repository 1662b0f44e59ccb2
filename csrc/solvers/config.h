// ConFIG (Liu et al., ICLR 2025, arXiv 2408.11104): the direction whose cosines with the task
// gradients are in given proportions, as long as the sum of the gradients' projections on it.
//
// With the unit gradients U, the cosine matrix C = U U' and x = C+ p, the direction is
// e = U'x / sqrt(x'C x) and its length sum_i n_i (C x)_i / sqrt(x'C x). Where x'C x = 0, as for two
// opposite gradients, no direction has such cosines: weights 0 (kDegenerate). Tasks with a zero
// gradient leave the solve and get 0.
//
// inputs: the preference p, or null for ones.
#pragma once

#include "cosines.h"
#include "solver.h"

namespace mtlfast {

struct Config {
  static constexpr bool collective = true;
  static constexpr int num_options = 0;
  static MTLFAST_HD int64 state_size(int) { return 0; }
  static MTLFAST_HD int64 workspace(int num_tasks) { return Cosines::workspace(num_tasks); }

  static MTLFAST_HD int run(const SolveArgs& args) {
    const int num_tasks = args.num_tasks;
    const Lanes lanes = args.lanes;
    const Cosines cosines(num_tasks, args.gramian, args.inputs, lanes, args.workspace);
    if (!(cosines.energy() > 0.0)) return fill(args.weights, num_tasks, 0.0, kDegenerate, lanes);
    const Lanes team = lanes.adders(num_tasks);
    double length = 0.0;  // times sqrt(energy)
    for (int i = team.index(); i < num_tasks; i += team.count()) {
      const double inverse = cosines.inverse_norm(i);
      if (inverse > 0.0) length += cosines.reached(i) / inverse;
    }
    length = team.sum(length);
    for (int i = lanes.index(); i < num_tasks; i += lanes.count()) {
      args.weights[i] =
          (length / cosines.energy()) * (cosines.solution(i) * cosines.inverse_norm(i));
    }
    lanes.sync();
    // Only a matrix that is no Gramian overflows.
    if (!all_finite(args.weights, num_tasks, lanes)) {
      return fill(args.weights, num_tasks, 0.0, kDegenerate, lanes);
    }
    return cosines.converged() ? kOk : kNotConverged;
  }
};

}  // namespace mtlfast
