// FAMO (Liu et al., NeurIPS 2023, arXiv 2306.03792): every log loss falls at the same rate.
//
// With z = softmax(logits) and D_i = L_i - b_i + 1e-8, w_i is z_i / D_i over its sum. When the same
// batch's losses after the step are known, delta_i = log D_i(before) - log D_i(after), and the
// logits go along -(z o (delta - <z, delta>) + decay * logits) by Adam. A call without an
// observation since the last one takes its own losses for it, then returns the weights.
// A task with L_i <= b_i is left out: weight 0, its logit stays (degenerate).
//
// options: lr, decay, observing (0: weights wanted, 1: the losses are those after the step).
// inputs:  the lowest losses b; without them 0.
// state:   [0] updates done, [1] 1 while losses wait for those after the step, then K each of
//          logits, first moments, second moments, losses that wait. All zeros is the fresh state.
#pragma once

#include "elementary.h"
#include "solver.h"

namespace mtlfast {

struct Famo {
  static constexpr int num_options = 3;
  static MTLFAST_HD int64 state_size(int num_tasks) {
    return 2 + 4 * static_cast<int64>(num_tasks);
  }
  static MTLFAST_HD int64 workspace(int num_tasks) { return 2 * static_cast<int64>(num_tasks); }

  static MTLFAST_HD int run(const SolveArgs& args) {
    const int num_tasks = args.num_tasks;
    if (args.losses == nullptr || args.state == nullptr) {
      return fill(args.weights, num_tasks, nan(""), kNonFinite);
    }
    const double* logits = args.state + 2;
    double* waiting = args.state + 2 + 3 * static_cast<int64>(num_tasks);
    if (args.state[1] != 0.0) update(args, waiting);
    args.state[1] = 0.0;

    // z_i / D_i over its sum, as one softmax.
    int status = kOk;
    for (int i = 0; i < num_tasks; ++i) {
      const double height = above(args, args.losses, i);
      args.weights[i] = height > 0.0 ? logits[i] - log(height + kShift) : kLeftOut;
      if (!(height > 0.0)) status = kDegenerate;
    }
    softmax(args.weights, num_tasks, 1.0, args.weights);
    if (args.options[2] == 0.0) {
      args.state[1] = 1.0;
      for (int i = 0; i < num_tasks; ++i) waiting[i] = args.losses[i];
    }
    return status;
  }

 private:
  static constexpr double kShift = 1e-8;

  static MTLFAST_HD double above(const SolveArgs& args, const double* losses, int i) {
    return args.inputs == nullptr ? losses[i] : losses[i] - args.inputs[i];
  }

  static MTLFAST_HD void update(const SolveArgs& args, const double* before) {
    const int num_tasks = args.num_tasks;
    double* logits = args.state + 2;
    double* first = logits + num_tasks;
    double* second = first + num_tasks;
    double* shares = args.workspace;
    double* drops = args.workspace + num_tasks;
    softmax(logits, num_tasks, 1.0, shares);
    double known_share = 0.0;
    double mean_drop = 0.0;  // over the tasks that are known, so that the others count as the mean
    for (int i = 0; i < num_tasks; ++i) {
      const double old_height = above(args, before, i);
      const double new_height = above(args, args.losses, i);
      drops[i] = kLeftOut;
      if (!(old_height > 0.0 && new_height > 0.0)) continue;
      drops[i] = log(old_height + kShift) - log(new_height + kShift);
      known_share += shares[i];
      mean_drop += shares[i] * drops[i];
    }
    if (!(known_share > 0.0)) return;
    mean_drop /= known_share;
    args.state[0] += 1.0;
    const Adam adam = Adam::at(args.state[0]);
    for (int i = 0; i < num_tasks; ++i) {
      if (drops[i] == kLeftOut) continue;
      const double slope = shares[i] * (drops[i] - mean_drop) + args.options[1] * logits[i];
      logits[i] -= args.options[0] * adam.step(slope, first + i, second + i);
    }
  }
};

}  // namespace mtlfast
