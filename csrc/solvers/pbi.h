// PBI, penalty-based boundary intersection (Zhang and Li, MOEA/D, IEEE Transactions on Evolutionary
// Computation 2007): the gradient of d1 + theta d2, where d1 is the length of L along the preference
// and d2 its distance from that ray: w = u + theta * (unit vector from the ray to L).
//
// On the ray itself, where d2 has a kink, its subgradient 0 is taken.
//
// options: theta.
// inputs:  the preference; without it 1 / K each. u is its unit vector.
#pragma once

#include "elementary.h"
#include "solver.h"

namespace mtlfast {

struct Pbi {
  static constexpr int num_options = 1;
  static MTLFAST_HD int64 state_size(int) { return 0; }
  static MTLFAST_HD int64 workspace(int num_tasks) { return 2 * static_cast<int64>(num_tasks); }

  static MTLFAST_HD int run(const SolveArgs& args) {
    const int num_tasks = args.num_tasks;
    if (args.losses == nullptr) return fill(args.weights, num_tasks, nan(""), kNonFinite);
    double* found = args.workspace;
    double* across = found + num_tasks;
    fill(args.weights, num_tasks, 1.0, kOk);
    normalize(args.inputs != nullptr ? args.inputs : args.weights, num_tasks, args.weights);
    normalize(args.losses, num_tasks, found);
    const double length = orthogonal_part(found, args.weights, num_tasks, across);
    if (length == 0.0) return kOk;
    const double push = args.options[0] / length;
    for (int i = 0; i < num_tasks; ++i) args.weights[i] += push * across[i];
    return kOk;
  }
};

}  // namespace mtlfast
