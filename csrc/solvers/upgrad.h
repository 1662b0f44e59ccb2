// UPGrad (Quinton and Rey 2024, arXiv 2406.16232), exactly.
//
// Each task's own share of the update, p_i g_i, is projected onto the dual cone of the gradients,
// {d : <g_j, d> >= 0 for all j}, and the projections add up. In coefficients the projection is
// v = p_i e_i + z with z >= 0 and G v >= 0: a non-negative quadratic programme with q = p_i G e_i.
// In unit vectors that is a column of the cosines; p_i and the norms only scale the answer. All K
// programmes share one factor, each starting from the support of the one before; the lanes share
// each programme.
//
// A task with a zero gradient leaves the solve with weight p_i.
//
// inputs: [K] preferences p, at least zero; null: 1/K each.
#pragma once

#include "nnqp.h"
#include "solver.h"

namespace mtlfast {

struct Upgrad {
  static constexpr int num_options = 0;
  static constexpr bool collective = true;
  static MTLFAST_HD int64 state_size(int) { return 0; }
  static MTLFAST_HD int64 workspace(int num_tasks) { return NonNegativeQp::workspace(num_tasks); }

  static MTLFAST_HD int run(const SolveArgs& args) {
    const int num_tasks = args.num_tasks;
    const Lanes lanes = args.lanes;
    NonNegativeQp qp(num_tasks, args.gramian, num_tasks, args.workspace, lanes);
    const double* norms = qp.norms();
    for (int i = lanes.index(); i < num_tasks; i += lanes.count()) {
      args.weights[i] = preference(args, i);
    }

    int status = kOk;
    for (int i = 0; i < num_tasks; ++i) {
      const double share = preference(args, i) * norms[i];
      if (!(share > 0.0)) continue;
      const NonNegativeQp::Outcome outcome = qp.solve(qp.cosines(i), 1.0, true);
      if (outcome != NonNegativeQp::kSolved) status = kNotConverged;
      for (int j = lanes.index(); j < num_tasks; j += lanes.count()) {
        const double added = qp.solution()[j];
        if (added > 0.0) args.weights[j] += share / norms[j] * added;
      }
    }
    lanes.sync();
    return status;
  }

 private:
  static MTLFAST_HD double preference(const SolveArgs& args, int task) {
    return args.inputs != nullptr ? args.inputs[task] : 1.0 / args.num_tasks;
  }
};

}  // namespace mtlfast
