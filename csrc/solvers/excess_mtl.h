// ExcessMTL (He et al., ICML 2024, arXiv 2402.02009): w_i <- w_i exp(lr e_i / e0_i), normalised. The
// excesses e_i = sum_p g_ip^2 / sqrt(S_ip + 1e-7) come in the place of the losses.
//
// The baseline e0 is the mean over the warm-up, in which the weights stay equal; without a warm-up it
// is the first e, and that first call moves the weights by e itself, as the official code does. A
// baseline of zero gives the rate 0, until the first positive e takes its place.
//
// options: lr, num_warmup_steps, sum (0: the weights sum to 1, 1: to K).
// state:   calls done, then K each of: log w (the largest is 0), e0. All zeros is the fresh state.
#pragma once

#include "solver.h"

namespace mtlfast {

struct ExcessMtl {
  static constexpr int num_options = 3;
  static MTLFAST_HD int64 state_size(int num_tasks) {
    return 1 + 2 * static_cast<int64>(num_tasks);
  }
  static MTLFAST_HD int64 workspace(int) { return 0; }

  static MTLFAST_HD int run(const SolveArgs& args) {
    const int num_tasks = args.num_tasks;
    const double* excess = args.losses;
    if (excess == nullptr || args.state == nullptr) {
      return fill(args.weights, num_tasks, nan(""), kNonFinite);
    }
    double* logs = args.state + 1;
    double* initial = logs + num_tasks;
    const double calls = args.state[0];
    const double num_warmup = args.options[1];
    args.state[0] = calls + 1.0;
    int status = kDegenerate;  // every excess is zero
    for (int i = 0; i < num_tasks; ++i) {
      if (excess[i] > 0.0) status = kOk;
    }
    if (calls < num_warmup) {
      for (int i = 0; i < num_tasks; ++i) initial[i] += excess[i] / num_warmup;
    } else {
      move(args, calls == 0.0, logs, initial);
    }
    double total = 0.0;
    for (int i = 0; i < num_tasks; ++i) {
      args.weights[i] = exp(logs[i]);
      total += args.weights[i];
    }
    const double scale = (args.options[2] != 0.0 ? num_tasks : 1.0) / total;
    for (int i = 0; i < num_tasks; ++i) args.weights[i] *= scale;
    return status;
  }

 private:
  static constexpr double kLargest = 1e300;  // of a logarithm: sums and differences stay finite

  static MTLFAST_HD void move(const SolveArgs& args, bool is_first, double* logs, double* initial) {
    const int num_tasks = args.num_tasks;
    double largest = -kHuge;
    for (int i = 0; i < num_tasks; ++i) {
      const double excess = args.losses[i];
      double rate = excess;
      if (!is_first) rate = initial[i] > 0.0 ? excess / (initial[i] + 1e-7) : 0.0;
      if (!(initial[i] > 0.0)) initial[i] = excess;
      const double step = args.options[0] * rate;
      logs[i] += step < kLargest ? step : kLargest;
      largest = logs[i] > largest ? logs[i] : largest;
    }
    for (int i = 0; i < num_tasks; ++i) {
      const double below = logs[i] - largest;
      logs[i] = below > -kLargest ? below : -kLargest;
    }
  }
};

}  // namespace mtlfast
