// FairGrad (Ban and Ji, ICML 2024, arXiv 2402.15638): the root of G w = w^(-1 / alpha), exactly.
//
// options: alpha > 0, sum (1: times K), max_norm of the update, may be infinite.
// state:   K weights of the last root. All zeros is the fresh state.
#pragma once

#include "newton.h"
#include "solver.h"

namespace mtlfast {

struct Fairgrad {
  static constexpr bool collective = true;
  static constexpr int num_options = 3;
  static MTLFAST_HD int64 state_size(int num_tasks) { return num_tasks; }
  static MTLFAST_HD int64 workspace(int num_tasks) { return NewtonRoot::workspace(num_tasks); }

  static MTLFAST_HD int run(const SolveArgs& args) {
    const double factor = args.options[1] != 0.0 ? args.num_tasks : 1.0;
    return fair_weights(args, 1.0 / args.options[0], factor, args.options[2]);
  }
};

}  // namespace mtlfast
