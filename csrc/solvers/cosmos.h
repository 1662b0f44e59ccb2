// COSMOS (Ruchte and Grabocka, ICDM 2021, arXiv 2103.13392): the gradient of
// <r, L> - penalty * cos(r, L), w = r - penalty / |L| * (part of r / |r| orthogonal to L).
//
// Where |L| is zero there is no cosine and w = r (degenerate).
//
// options: penalty.
// inputs:  the preference r; without it 1 / K each.
#pragma once

#include "elementary.h"
#include "solver.h"

namespace mtlfast {

struct Cosmos {
  static constexpr int num_options = 1;
  static MTLFAST_HD int64 state_size(int) { return 0; }
  static MTLFAST_HD int64 workspace(int num_tasks) { return 3 * static_cast<int64>(num_tasks); }

  static MTLFAST_HD int run(const SolveArgs& args) {
    const int num_tasks = args.num_tasks;
    if (args.losses == nullptr) return fill(args.weights, num_tasks, nan(""), kNonFinite);
    fill(args.weights, num_tasks, 1.0 / num_tasks, kOk);
    if (args.inputs != nullptr) {
      for (int i = 0; i < num_tasks; ++i) args.weights[i] = args.inputs[i];
    }
    double* wanted = args.workspace;
    double* found = wanted + num_tasks;
    double* across = found + num_tasks;
    normalize(args.weights, num_tasks, wanted);
    const double length = normalize(args.losses, num_tasks, found);
    orthogonal_part(wanted, found, num_tasks, across);
    const double pull = args.options[0] / length;
    if (!is_finite(pull)) return kDegenerate;
    for (int i = 0; i < num_tasks; ++i) args.weights[i] -= pull * across[i];
    return kOk;
  }
};

}  // namespace mtlfast
