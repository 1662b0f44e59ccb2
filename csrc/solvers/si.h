// SI, the scale-invariant baseline (Navon et al., ICML 2022, arXiv 2202.01017): the gradient of
// sum_i log L_i, w_i = 1 / L_i. A task whose loss is not positive gets weight 0 (degenerate).
#pragma once

#include "elementary.h"
#include "solver.h"

namespace mtlfast {

struct Si {
  static constexpr int num_options = 0;
  static MTLFAST_HD int64 state_size(int) { return 0; }
  static MTLFAST_HD int64 workspace(int) { return 0; }

  static MTLFAST_HD int run(const SolveArgs& args) {
    const int num_tasks = args.num_tasks;
    if (args.losses == nullptr) return fill(args.weights, num_tasks, nan(""), kNonFinite);
    int status = kOk;
    for (int i = 0; i < num_tasks; ++i) {
      const bool usable = is_positive(args.losses[i]);
      args.weights[i] = usable ? 1.0 / args.losses[i] : 0.0;
      if (!usable) status = kDegenerate;
    }
    return status;
  }
};

}  // namespace mtlfast
