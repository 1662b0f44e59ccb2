// DWA, dynamic weight average (Liu et al., CVPR 2019, arXiv 1803.10704):
// w = K softmax(r / T), r_i the mean loss of the last epoch over that of the one before.
//
// The caller ends an epoch: `epochs` grows to 2, `last` becomes `older`, `mean` becomes `last`, and
// `batches` and `mean` go back to zero.
//
// options: temperature T.
// state:   [0] batches of this epoch, [1] epochs ended (2 stands for more), then K each of the mean
//          loss of this epoch so far, of the last epoch, of the one before.
#pragma once

#include "elementary.h"
#include "solver.h"

namespace mtlfast {

struct Dwa {
  static constexpr int num_options = 1;
  static MTLFAST_HD int64 state_size(int num_tasks) {
    return 2 + 3 * static_cast<int64>(num_tasks);
  }
  static MTLFAST_HD int64 workspace(int) { return 0; }

  static MTLFAST_HD int run(const SolveArgs& args) {
    const int num_tasks = args.num_tasks;
    if (args.losses == nullptr || args.state == nullptr) {
      return fill(args.weights, num_tasks, nan(""), kNonFinite);
    }
    double* mean = args.state + 2;
    const double* last = mean + num_tasks;
    const double* older = last + num_tasks;
    int status = fill(args.weights, num_tasks, 1.0, kOk);
    if (args.state[1] >= 2.0) {
      for (int i = 0; i < num_tasks; ++i) {
        double rate = older[i] != 0.0 ? last[i] / older[i] : -1.0;
        if (!(rate >= 0.0 && is_finite(rate))) {  // zero before, or another sign: no rate
          rate = 1.0;
          status = kDegenerate;
        }
        args.weights[i] = rate / args.options[0];
      }
      softmax(args.weights, num_tasks, num_tasks, args.weights);
    }
    args.state[0] += 1.0;
    for (int i = 0; i < num_tasks; ++i) {
      mean[i] += args.losses[i] / args.state[0] - mean[i] / args.state[0];
    }
    return status;
  }
};

}  // namespace mtlfast
