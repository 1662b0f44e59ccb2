// CR-MOGM (Zhou et al., NeurIPS 2022): a moving average of another method's weights.
//
// lambda <- alpha lambda + (1 - alpha) lambdahat; the first lambda is lambdahat itself.
//
// options: alpha.
// losses:  lambdahat [K], the other method's weights; NaN or Inf in it leaves lambda as it was.
// state:   [0] 1 once there is a lambda, then lambda [K]. All zeros is the fresh state.
#pragma once

#include "solver.h"

namespace mtlfast {

struct Crmogm {
  static constexpr int num_options = 1;
  static MTLFAST_HD int64 state_size(int num_tasks) { return 1 + static_cast<int64>(num_tasks); }
  static MTLFAST_HD int64 workspace(int) { return 0; }

  static MTLFAST_HD int run(const SolveArgs& args) {
    const int num_tasks = args.num_tasks;
    if (args.losses == nullptr || args.state == nullptr) {
      return fill(args.weights, num_tasks, nan(""), kNonFinite);
    }
    const double kept = args.state[0] == 0.0 ? 0.0 : args.options[0];
    double* lambda = args.state + 1;
    args.state[0] = 1.0;
    for (int i = 0; i < num_tasks; ++i) {
      lambda[i] = kept * lambda[i] + (1.0 - kept) * args.losses[i];
      args.weights[i] = lambda[i];
    }
    return kOk;
  }
};

}  // namespace mtlfast
