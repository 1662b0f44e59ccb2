// GradNorm (Chen et al., ICML 2018, arXiv 1711.02257) from gradient norms: no double backward.
//
// With n_i the unweighted norm, the weighted norms are G_i = w_i n_i, the targets
// T_i = mean(G) * r_i^alpha with r_i = (L_i / L0_i) / mean_j(L_j / L0_j), and the loss on the
// weights, sum_i |G_i - T_i|, has with T held constant the derivative n_i * sign(G_i - T_i).
// A call returns the weights as they stand BEFORE its own update (the first call: all ones).
//
// options: alpha, lr, sgd (0: relative Adam, 1: SGD), softmax (0: the state holds w with sum K,
//          1: it holds logits s with w = K softmax(s)).
// state:   [0] updates done, [1] 1 once the task losses L0 are stored, then K each of: w or s, L0,
//          Adam's first moment, Adam's second moment. All zeros is the fresh state.
#pragma once

#include "solver.h"

namespace mtlfast {

struct Gradnorm {
  static constexpr bool collective = true;
  static constexpr int num_options = 4;
  static MTLFAST_HD int64 state_size(int num_tasks) {
    return 2 + 4 * static_cast<int64>(num_tasks);
  }
  static MTLFAST_HD int64 workspace(int num_tasks) { return 2 * static_cast<int64>(num_tasks); }

  static MTLFAST_HD int run(const SolveArgs& args) {
    const int num_tasks = args.num_tasks;
    const Lanes lanes = args.lanes;
    const bool sgd = args.options[2] != 0.0;
    const bool softmax = args.options[3] != 0.0;
    if (args.losses == nullptr || args.state == nullptr) {
      return fill(args.weights, num_tasks, nan(""), kNonFinite, lanes);
    }
    double* values = args.state + 2;
    double* initial = values + num_tasks;
    const double count = args.state[0] + 1.0;
    const bool fresh = args.state[1] == 0.0;
    lanes.sync();
    if (fresh) {
      if (lanes.first()) args.state[1] = 1.0;
      fill(values, num_tasks, softmax ? 0.0 : 1.0, kOk, lanes);
      fill(initial, num_tasks, 0.0, kOk, lanes);
    }
    // A loss that starts at zero has no rate yet: its L0 is the first nonzero value.
    for (int i = lanes.index(); i < num_tasks; i += lanes.count()) {
      if (initial[i] == 0.0) initial[i] = args.losses[i];
    }
    write_weights(values, num_tasks, softmax, args.weights, lanes);

    double* norms = args.workspace;
    double* slopes = args.workspace + num_tasks;  // d loss / d w, then d loss / d parameter
    double total_norm = 0.0;
    double total_weighted = 0.0;
    for (int i = lanes.index(); i < num_tasks; i += lanes.count()) {
      const double squared = args.gramian[static_cast<int64>(i) * num_tasks + i];
      norms[i] = squared > 0.0 ? sqrt(squared) : 0.0;
      total_norm += norms[i];
      total_weighted += args.weights[i] * norms[i];
    }
    total_norm = lanes.sum(total_norm);
    const double mean_weighted = lanes.sum(total_weighted) / num_tasks;
    lanes.sync();
    if (!(mean_weighted > 0.0)) return kDegenerate;  // nothing to balance: the weights stay

    // Adam does not see the common scale of the gradients; SGD takes the paper's raw step.
    const double unit = sgd ? args.scale : num_tasks / total_norm;
    write_slopes(args, initial, norms, mean_weighted, unit, slopes);
    if (softmax) {
      double mean_slope = 0.0;
      for (int i = lanes.index(); i < num_tasks; i += lanes.count()) {
        mean_slope += args.weights[i] * slopes[i];
      }
      mean_slope = lanes.sum(mean_slope) / num_tasks;
      for (int i = lanes.index(); i < num_tasks; i += lanes.count()) {
        slopes[i] = args.weights[i] * (slopes[i] - mean_slope);
      }
    }
    if (lanes.first()) args.state[0] = count;
    update(args, sgd, softmax, count, slopes, values, initial + num_tasks);
    return kOk;
  }

 private:
  static constexpr double kFloor = 1e-6;  // smallest weight beside the others' order of 1

  // From here on each lane keeps to its own tasks; what it needs of the others' it gets in sums.
  static MTLFAST_HD void write_weights(const double* values, int num_tasks, bool softmax,
                                       double* weights, Lanes lanes) {
    double largest = values[0];
    for (int i = lanes.index(); i < num_tasks; i += lanes.count()) {
      weights[i] = values[i];
      largest = values[i] > largest ? values[i] : largest;
    }
    if (!softmax) return;
    largest = lanes.largest(largest);
    double total = 0.0;
    for (int i = lanes.index(); i < num_tasks; i += lanes.count()) {
      weights[i] = exp(values[i] - largest);
      total += weights[i];
    }
    total = lanes.sum(total);
    for (int i = lanes.index(); i < num_tasks; i += lanes.count()) weights[i] *= num_tasks / total;
  }

  static MTLFAST_HD void write_slopes(const SolveArgs& args, const double* initial,
                                      const double* norms, double mean_weighted, double unit,
                                      double* slopes) {
    const int num_tasks = args.num_tasks;
    const Lanes lanes = args.lanes;
    double mean_rate = 0.0;
    for (int i = lanes.index(); i < num_tasks; i += lanes.count()) {
      slopes[i] = initial[i] != 0.0 ? args.losses[i] / initial[i] : 1.0;
      mean_rate += slopes[i];
    }
    mean_rate = lanes.sum(mean_rate) / num_tasks;
    for (int i = lanes.index(); i < num_tasks; i += lanes.count()) {
      // Losses that changed sign have no rate either: no pull beyond the mean norm or below zero.
      double rate = is_finite(mean_rate) && mean_rate > 0.0 ? slopes[i] / mean_rate : 1.0;
      if (rate < 0.0) rate = 0.0;
      const double target = mean_weighted * pow(rate, args.options[0]);
      const double gap = args.weights[i] * norms[i] - target;
      const bool balanced = fabs(gap) <= 1e-12 * target;  // rounding must not choose the sign
      const double sign = balanced ? 0.0 : (gap > 0.0 ? 1.0 : -1.0);
      slopes[i] = sign * norms[i] * unit;
    }
  }

  static MTLFAST_HD void update(const SolveArgs& args, bool sgd, bool softmax, double count,
                                const double* slopes, double* values, double* moments) {
    const int num_tasks = args.num_tasks;
    const double lr = args.options[1];
    const Lanes lanes = args.lanes;
    const double correction1 = 1.0 - pow(0.9, count);
    const double correction2 = 1.0 - pow(0.999, count);
    for (int i = lanes.index(); i < num_tasks; i += lanes.count()) {
      double step = slopes[i];
      if (!sgd) {
        double* first = moments + i;
        double* second = moments + num_tasks + i;
        *first = 0.9 * *first + 0.1 * slopes[i];
        *second = 0.999 * *second + 0.001 * slopes[i] * slopes[i];
        step = *second > 0.0 ? (*first / correction1) / sqrt(*second / correction2) : 0.0;
        if (!softmax) step *= values[i];  // relative: a weight moves in proportion to itself
      }
      values[i] -= lr * step;
    }
    if (softmax) {
      double largest = -kHuge;
      for (int i = lanes.index(); i < num_tasks; i += lanes.count()) {
        largest = values[i] > largest ? values[i] : largest;
      }
      const double lowest = lanes.largest(largest) + log(kFloor);
      for (int i = lanes.index(); i < num_tasks; i += lanes.count()) {
        values[i] = values[i] > lowest ? values[i] : lowest;
      }
      lanes.sync();
      return;
    }
    double total = 0.0;
    for (int i = lanes.index(); i < num_tasks; i += lanes.count()) {
      values[i] = values[i] > kFloor ? values[i] : kFloor;
      total += values[i];
    }
    total = lanes.sum(total);
    for (int i = lanes.index(); i < num_tasks; i += lanes.count()) values[i] *= num_tasks / total;
    lanes.sync();
  }
};

}  // namespace mtlfast
