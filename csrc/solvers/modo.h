// MoDo (Chen, Fernando et al., NeurIPS 2023, arXiv 2305.20057): two independent batches.
//
// The Gramian [2K, 2K] is that of both batches' task gradients J1, J2. Its block A = J1 J2' is an
// unbiased estimate of the Gramian of the expected gradients; a call takes one projected step,
// lambda <- P(lambda - gamma (A lambda + rho lambda)), and answers with lambda for both batches.
//
// options: gamma, rho, mean (0: weights lambda for each batch, 1: lambda / 2).
// state:   lambda [K]. All zeros is the fresh state, lambda = 1/K.
#pragma once

#include "simplex_projection.h"
#include "solver.h"

namespace mtlfast {

struct Modo {
  static constexpr bool collective = true;
  static constexpr int num_options = 3;
  static MTLFAST_HD int64 state_size(int rows) { return rows / 2; }
  static MTLFAST_HD int64 workspace(int rows) { return rows / 2; }

  static MTLFAST_HD int run(const SolveArgs& args) {
    const int rows = args.num_tasks;
    const int num_tasks = rows / 2;
    const Lanes lanes = args.lanes;
    if (args.state == nullptr || rows != 2 * num_tasks) {
      return fill(args.weights, rows, nan(""), kNonFinite, lanes);
    }
    double* lambda = args.state;
    start_on_simplex(lambda, num_tasks, lanes);
    step_on_simplex(args.gramian + num_tasks, rows, num_tasks, args.scale, args.options[0],
                    args.options[1], lambda, args.workspace, lanes);
    const double share = args.options[2] != 0.0 ? 0.5 : 1.0;
    for (int i = lanes.index(); i < num_tasks; i += lanes.count()) {
      args.weights[i] = args.weights[num_tasks + i] = share * lambda[i];
    }
    lanes.sync();
    return kOk;
  }
};

}  // namespace mtlfast
