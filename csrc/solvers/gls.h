// GLS, geometric loss strategy (Chennupati et al., CVPR workshops 2019, arXiv 1904.08492): the
// gradient of (L_1 .. L_K)^(1/K), w_i = mean / (K L_i) with the geometric mean taken in log space.
//
// A task whose loss is not positive leaves the mean and gets weight 0 (degenerate).
#pragma once

#include "elementary.h"
#include "solver.h"

namespace mtlfast {

struct Gls {
  static constexpr int num_options = 0;
  static MTLFAST_HD int64 state_size(int) { return 0; }
  static MTLFAST_HD int64 workspace(int) { return 0; }

  static MTLFAST_HD int run(const SolveArgs& args) {
    const int num_tasks = args.num_tasks;
    if (args.losses == nullptr) return fill(args.weights, num_tasks, nan(""), kNonFinite);
    double mean = 0.0;
    int members = 0;
    for (int i = 0; i < num_tasks; ++i) {
      args.weights[i] = 0.0;
      if (!is_positive(args.losses[i])) continue;
      args.weights[i] = log(args.losses[i]);
      mean += args.weights[i];
      ++members;
    }
    if (members > 0) mean /= members;
    for (int i = 0; i < num_tasks; ++i) {
      if (!is_positive(args.losses[i])) continue;
      // exp(709) is finite, exp(710) is not.
      args.weights[i] = exp(fmin(mean - args.weights[i], 709.0)) / members;
    }
    return members == num_tasks ? kOk : kDegenerate;
  }
};

}  // namespace mtlfast
