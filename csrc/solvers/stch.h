// STCH, smooth Tchebycheff scalarization (Lin et al., ICML 2024, arXiv 2402.19078): the gradient of
// mu log sum_i exp(lambda_i f_i / mu), that is w = lambda o softmax(lambda o f / mu) on each f_i.
//
// options: mu, logarithmic (0: f_i = L_i, 1: f_i = log L_i; a task whose loss is not positive is
//          then left out with weight 0, degenerate).
// inputs:  the preference lambda; without it 1 / K each.
#pragma once

#include "elementary.h"
#include "solver.h"

namespace mtlfast {

struct Stch {
  static constexpr int num_options = 2;
  static MTLFAST_HD int64 state_size(int) { return 0; }
  static MTLFAST_HD int64 workspace(int) { return 0; }

  static MTLFAST_HD int run(const SolveArgs& args) {
    const int num_tasks = args.num_tasks;
    if (args.losses == nullptr) return fill(args.weights, num_tasks, nan(""), kNonFinite);
    const double mu = args.options[0];
    const bool logarithmic = args.options[1] != 0.0;
    int status = kOk;
    for (int i = 0; i < num_tasks; ++i) {
      const double loss = args.losses[i];
      if (logarithmic && !is_positive(loss)) {
        args.weights[i] = kLeftOut;
        status = kDegenerate;
        continue;
      }
      // Bounded, so that the differences of a softmax stay finite; above kLeftOut in any case.
      const double height = preference(args, i) * (logarithmic ? log(loss) : loss) / mu;
      args.weights[i] = fmin(fmax(height, -0.5 * kHuge), 0.5 * kHuge);
    }
    softmax(args.weights, num_tasks, 1.0, args.weights);
    for (int i = 0; i < num_tasks; ++i) {
      args.weights[i] *= preference(args, i);
      if (!logarithmic || args.weights[i] == 0.0) continue;
      args.weights[i] = fmin(args.weights[i] / args.losses[i], kHuge);
    }
    return status;
  }

 private:
  static MTLFAST_HD double preference(const SolveArgs& args, int i) {
    return args.inputs == nullptr ? 1.0 / args.num_tasks : args.inputs[i];
  }
};

}  // namespace mtlfast
