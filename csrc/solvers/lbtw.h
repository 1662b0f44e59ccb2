// LBTW, loss-balanced task weighting (Liu et al., AAAI 2019): w_i = (L_i / F_i)^alpha, F the losses
// of the epoch's first batch.
//
// A task that has had no positive loss in this epoch has no F and gets weight 1, one whose loss has
// turned negative gets 0 (both degenerate).
//
// options: alpha.
// state:   [0] batches of this epoch (the caller sets it to 0 at the end of one), then K of F.
#pragma once

#include "elementary.h"
#include "solver.h"

namespace mtlfast {

struct Lbtw {
  static constexpr int num_options = 1;
  static MTLFAST_HD int64 state_size(int num_tasks) { return 1 + static_cast<int64>(num_tasks); }
  static MTLFAST_HD int64 workspace(int) { return 0; }

  static MTLFAST_HD int run(const SolveArgs& args) {
    const int num_tasks = args.num_tasks;
    if (args.losses == nullptr || args.state == nullptr) {
      return fill(args.weights, num_tasks, nan(""), kNonFinite);
    }
    double* first = args.state + 1;
    if (args.state[0] == 0.0) fill(first, num_tasks, 0.0, kOk);
    args.state[0] += 1.0;
    int status = kOk;
    for (int i = 0; i < num_tasks; ++i) {
      const double loss = args.losses[i];
      if (first[i] == 0.0 && is_positive(loss)) first[i] = loss;
      args.weights[i] = 1.0;
      if (first[i] > 0.0) {
        args.weights[i] = fmin(pow(loss > 0.0 ? loss / first[i] : 0.0, args.options[0]), kHuge);
      }
      if (first[i] == 0.0 || loss < 0.0) status = kDegenerate;
    }
    return status;
  }
};

}  // namespace mtlfast
