// The task weights of MoCo (Fernando et al., ICLR 2023, arXiv 2210.12624).
//
// The Gramian is that of the buffers that track the task gradients. A call takes one projected step,
// lambda <- P(lambda - gamma_t (G lambda + rho lambda)), and answers with lambda after it.
//
// options: gamma, rho, decay: gamma_t = gamma / t^decay in the t-th call.
// state:   [0] calls so far, then lambda [K]. All zeros is the fresh state, lambda = 1/K.
#pragma once

#include "simplex_projection.h"
#include "solver.h"

namespace mtlfast {

struct Moco {
  static constexpr bool collective = true;
  static constexpr int num_options = 3;
  static MTLFAST_HD int64 state_size(int num_tasks) { return 1 + static_cast<int64>(num_tasks); }
  static MTLFAST_HD int64 workspace(int num_tasks) { return num_tasks; }

  static MTLFAST_HD int run(const SolveArgs& args) {
    const int num_tasks = args.num_tasks;
    const Lanes lanes = args.lanes;
    if (args.state == nullptr) return fill(args.weights, num_tasks, nan(""), kNonFinite, lanes);
    double* lambda = args.state + 1;
    const double calls = args.state[0] + 1.0;
    start_on_simplex(lambda, num_tasks, lanes);
    if (lanes.first()) args.state[0] = calls;
    const double rate = args.options[0] / pow(calls, args.options[2]);
    step_on_simplex(args.gramian, num_tasks, num_tasks, args.scale, rate, args.options[1], lambda,
                    args.workspace, lanes);
    for (int i = lanes.index(); i < num_tasks; i += lanes.count()) args.weights[i] = lambda[i];
    lanes.sync();
    return kOk;
  }
};

}  // namespace mtlfast
