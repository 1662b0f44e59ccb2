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
  static constexpr bool collective = true;
  static MTLFAST_HD int64 state_size(int) { return 0; }
  static MTLFAST_HD int64 workspace(int num_tasks) {
    return num_tasks + NonNegativeQp::workspace(num_tasks);
  }

  static MTLFAST_HD int run(const SolveArgs& args) {
    const int num_tasks = args.num_tasks;
    const Lanes lanes = args.lanes;
    double* linear = args.workspace;  // q, for gradients of unit length
    NonNegativeQp qp(num_tasks, args.gramian, num_tasks, linear + num_tasks, lanes);
    const double* norms = qp.norms();
    double scale = 0.0;
    fill(linear, num_tasks, 0.0, kOk, lanes);
    for (int i = 0; i < num_tasks; ++i) {
      const double preference = args.inputs != nullptr ? args.inputs[i] : 1.0 / num_tasks;
      if (lanes.first()) args.weights[i] = preference;
      const double share = preference * norms[i];
      scale += share;
      const double* cosines = qp.cosines(i);
      for (int j = lanes.index(); j < num_tasks; j += lanes.count()) {
        linear[j] += share * cosines[j];
      }
    }
    lanes.sync();
    const NonNegativeQp::Outcome outcome = qp.solve(linear, scale, true);
    for (int j = lanes.index(); j < num_tasks; j += lanes.count()) {
      const double added = qp.solution()[j];
      if (added > 0.0) args.weights[j] += added / norms[j];
    }
    lanes.sync();
    return outcome == NonNegativeQp::kSolved ? kOk : kNotConverged;
  }
};

}  // namespace mtlfast
