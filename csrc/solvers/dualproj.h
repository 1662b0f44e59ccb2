// DualProj (Lopez-Paz and Ranzato, NIPS 2017, arXiv 1706.08840), exactly.
//
// The weighted mean of the gradients, J'p, is projected onto their dual cone,
// {d : <g_j, d> >= 0 for all j}. In coefficients that is v = p + z with z >= 0 and G v >= 0: one
// non-negative quadratic programme with q = G p.
//
// A task with a zero gradient leaves the solve with weight p_i.
//
// inputs: [K] preferences p, at least zero; null: 1/K each.
#pragma once

#include "nnqp.h"
#include "solver.h"

namespace mtlfast {

struct Dualproj {
  static constexpr int num_options = 0;
  static MTLFAST_HD int64 state_size(int) { return 0; }
  static MTLFAST_HD int64 workspace(int num_tasks) {
    return num_tasks + NonNegativeQp::workspace(num_tasks);
  }

  static MTLFAST_HD int run(const SolveArgs& args) {
    const int num_tasks = args.num_tasks;
    double* linear = args.workspace;  // q, for gradients of unit length
    NonNegativeQp qp(num_tasks, args.gramian, num_tasks, linear + num_tasks);
    const double* norms = qp.norms();
    double scale = 0.0;
    fill(linear, num_tasks, 0.0, kOk);
    for (int i = 0; i < num_tasks; ++i) {
      args.weights[i] = args.inputs != nullptr ? args.inputs[i] : 1.0 / num_tasks;
      const double share = args.weights[i] * norms[i];
      scale += share;
      const double* cosines = qp.cosines(i);
      for (int j = 0; j < num_tasks; ++j) linear[j] += share * cosines[j];
    }
    const NonNegativeQp::Outcome outcome = qp.solve(linear, scale, true);
    for (int j = 0; j < num_tasks; ++j) {
      const double added = qp.solution()[j];
      if (added > 0.0) args.weights[j] += added / norms[j];
    }
    return outcome == NonNegativeQp::kSolved ? kOk : kNotConverged;
  }
};

}  // namespace mtlfast
