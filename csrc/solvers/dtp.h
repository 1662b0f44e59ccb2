// DTP, dynamic task prioritization (Guo et al., ECCV 2018): w_i = -(1 - k_i)^gamma log k_i, k_i the
// running mean of the task's key performance indicator: k <- alpha * new + (1 - alpha) * k.
//
// Before the first indicators the weights are 1.
//
// options: gamma, alpha.
// inputs:  new indicators in (0, 1], which the caller has made sure of; null for a call without.
// state:   [0] observations so far, then K running means.
#pragma once

#include "solver.h"

namespace mtlfast {

struct Dtp {
  static constexpr int num_options = 2;
  static MTLFAST_HD int64 state_size(int num_tasks) { return 1 + static_cast<int64>(num_tasks); }
  static MTLFAST_HD int64 workspace(int) { return 0; }

  static MTLFAST_HD int run(const SolveArgs& args) {
    if (args.state == nullptr) return fill(args.weights, args.num_tasks, nan(""), kNonFinite);
    double* means = args.state + 1;
    if (args.inputs != nullptr) {
      const double share = args.state[0] == 0.0 ? 1.0 : args.options[1];
      args.state[0] += 1.0;
      for (int i = 0; i < args.num_tasks; ++i) {
        means[i] = share * args.inputs[i] + (1.0 - share) * means[i];
      }
    }
    for (int i = 0; i < args.num_tasks; ++i) {
      if (args.state[0] == 0.0) {
        args.weights[i] = 1.0;
      } else {
        // fmax: the logarithm of 1 is 0, and so is the weight, not -0.
        args.weights[i] = pow(1.0 - means[i], args.options[0]) * fmax(-log(means[i]), 0.0);
      }
    }
    return kOk;
  }
};

}  // namespace mtlfast
