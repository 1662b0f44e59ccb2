// IMTL (Liu et al., ICLR 2021, "Towards Impartial Multi-task Learning"): IMTL-G on the gradients of
// learned multiples exp(s_i) L_i of the losses.
//
// The scales follow IMTL-L: s goes down the gradient of sum_i exp(s_i) L_i - s_i, which is
// exp(s_i) L_i - 1 and zero where exp(s_i) = 1 / L_i. A call returns the weights from BEFORE its own
// update (the first: IMTL-G): with the weights a_i of IMTL-G for the gradients exp(s_i) g_i, g_i gets
// exp(s_i) a_i. No step is longer than 1, and |s_i| is at most 50. The s of a loss that is not
// positive stays (kDegenerate).
//
// options: lr, the step length.
// state:   K scales s; all zeros is the fresh state.
#pragma once

#include "imtlg.h"
#include "solver.h"

namespace mtlfast {

struct Imtl {
  static constexpr bool collective = true;
  static constexpr int num_options = 1;
  static MTLFAST_HD int64 state_size(int num_tasks) { return num_tasks; }
  static MTLFAST_HD int64 workspace(int num_tasks) {
    return num_tasks + Imtlg::workspace(num_tasks);
  }

  static MTLFAST_HD int run(const SolveArgs& args) {
    const int num_tasks = args.num_tasks;
    const Lanes lanes = args.lanes;
    if (args.losses == nullptr || args.state == nullptr) {
      return fill(args.weights, num_tasks, nan(""), kNonFinite, lanes);
    }
    double* ratios = args.workspace;
    for (int i = lanes.index(); i < num_tasks; i += lanes.count()) ratios[i] = exp(args.state[i]);
    lanes.sync();
    const int status = Imtlg::run(args, ratios, ratios + num_tasks);
    bool positive = true;
    for (int i = lanes.index(); i < num_tasks; i += lanes.count()) {
      if (!(args.losses[i] > 0.0)) {
        positive = false;
        continue;
      }
      const double step = args.options[0] * (ratios[i] * args.losses[i] - 1.0);
      args.state[i] = within(args.state[i] - within(step, 1.0), kLimit);
    }
    lanes.sync();
    return !lanes.all(positive) && status == kOk ? kDegenerate : status;
  }

 private:
  static constexpr double kLimit = 50.0;

  static MTLFAST_HD double within(double value, double limit) {
    return value > limit ? limit : (value < -limit ? -limit : value);
  }
};

}  // namespace mtlfast
