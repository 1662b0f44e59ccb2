// Nash-MTL (Navon et al., ICML 2022, arXiv 2202.01017): the root of G a = 1 / a, exactly.
//
// At the root a_i <g_i, J'a> = 1 for every task, so |J'a|^2 = K: the update's length is known.
//
// options: max_norm of the update, may be infinite.
// state:   K weights of the last root. All zeros is the fresh state.
#pragma once

#include "newton.h"
#include "solver.h"

namespace mtlfast {

struct Nash {
  static constexpr bool collective = true;
  static constexpr int num_options = 1;
  static MTLFAST_HD int64 state_size(int num_tasks) { return num_tasks; }
  static MTLFAST_HD int64 workspace(int num_tasks) { return NewtonRoot::workspace(num_tasks); }

  static MTLFAST_HD int run(const SolveArgs& args) {
    return fair_weights(args, 1.0, 1.0, args.options[0]);
  }
};

}  // namespace mtlfast
