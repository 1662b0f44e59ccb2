// PCD, Priority-Constrained Descent (TMLR 2026, arXiv 2606.29521), exactly.
//
// Task 0 is the primary one. With the gradients divided by their running norms, h_i = g_i s_i,
//
//     min |d - h_0|^2 / 2  subject to  <h_j, d> >= tau_j |h_j|^2  for the other tasks j,
//
// and the answer is d brought to the length of g_0. The multipliers z >= 0 of the dual, d = h_0 +
// sum z_j h_j, solve a non-negative quadratic programme; it is unbounded where no d fulfils all
// conditions.
//
// s_i = 1 / sqrt(v_i + eps), v_i the mean of |g_i|^2 over the calls, weighted by beta^age. A task
// whose gradient is zero has no condition and weight 0. A primary gradient of zero has the answer 0.
// Conditions that contradict each other are dropped, d = g_0, and a d of zero has no direction,
// weights 0: both kDegenerate.
//
// options: beta, eps, tau (of all tasks where inputs is null).
// inputs:  [K] tau_j, the first not read; or null.
// state:   [0] calls, then K moving averages of |g_i|^2, before the division by 1 - beta^calls.
#pragma once

#include "nnqp.h"
#include "solver.h"

namespace mtlfast {

struct Pcd {
  static constexpr int num_options = 3;
  static constexpr bool collective = true;
  static MTLFAST_HD int64 state_size(int num_tasks) { return 1 + static_cast<int64>(num_tasks); }
  static MTLFAST_HD int64 workspace(int num_tasks) {
    return 4 * static_cast<int64>(num_tasks) + NonNegativeQp::workspace(num_tasks - 1);
  }

  static MTLFAST_HD int run(const SolveArgs& args) {
    const int num_tasks = args.num_tasks;
    const Lanes lanes = args.lanes;
    double* norms = args.workspace;          // |g_i|
    double* lengths = norms + num_tasks;     // |h_i|
    double* products = lengths + num_tasks;  // <u_i, u_0>, unit vectors
    double* linear = products + num_tasks;   // q of the tasks 1 .. K-1
    write_lengths(args, norms, lengths);
    fill(args.weights, num_tasks, 0.0, kOk, lanes);
    if (!(norms[0] > 0.0)) return kOk;
    set_first(args, 1.0);
    if (num_tasks == 1) return kOk;

    const double primary = lengths[0];
    double promised = 0.0;  // the largest tau_j |h_j|
    for (int j = 1 + lanes.index(); j < num_tasks; j += lanes.count()) {
      const double tau = args.inputs != nullptr ? args.inputs[j] : args.options[2];
      const double own = sqrt_diagonal(args, j);
      const double cosine = own > 0.0 ? args.gramian[j] / sqrt_diagonal(args, 0) / own : 0.0;
      products[j] = cosine > 1.0 ? 1.0 : (cosine < -1.0 ? -1.0 : cosine);
      linear[j - 1] = primary * products[j] - tau * lengths[j];
      if (tau * lengths[j] > promised) promised = tau * lengths[j];
    }
    promised = lanes.largest(promised);
    lanes.sync();
    NonNegativeQp qp(num_tasks - 1, args.gramian + num_tasks + 1, num_tasks, linear + num_tasks,
                     lanes);
    // Without promises d = 0 fulfils all conditions.
    const NonNegativeQp::Outcome outcome = qp.solve(linear, primary + promised, promised == 0.0);
    if (outcome == NonNegativeQp::kUnbounded) return kDegenerate;

    const double* solution = qp.solution();
    double squared = lanes.first() ? primary * primary : 0.0;
    double spread = lanes.first() ? primary : 0.0;
    for (int j = lanes.index(); j + 1 < num_tasks; j += lanes.count()) {
      if (!(solution[j] > 0.0)) continue;
      double product = 2.0 * primary * products[j + 1];
      for (int k = 0; k + 1 < num_tasks; ++k) product += qp.cosines(j)[k] * solution[k];
      squared += solution[j] * product;
      spread += solution[j];
    }
    squared = lanes.sum(squared);
    spread = lanes.sum(spread);
    if (!(squared > kNoise * spread * spread)) {
      // d keeps every promise: if it is rounding beside its parts, only rounding made it possible.
      if (promised == 0.0) set_first(args, 0.0);
      return kDegenerate;
    }
    const double length = sqrt(squared);
    for (int j = 1 + lanes.index(); j < num_tasks; j += lanes.count()) {
      if (solution[j - 1] > 0.0) args.weights[j] = solution[j - 1] / length * (norms[0] / norms[j]);
    }
    set_first(args, primary / length);
    return outcome == NonNegativeQp::kSolved ? kOk : kNotConverged;
  }

 private:
  static constexpr double kNoise = 1024.0 * kEpsilon;  // of |d|^2, to (sum of the parts' lengths)^2

  static MTLFAST_HD void set_first(const SolveArgs& args, double weight) {
    if (args.lanes.first()) args.weights[0] = weight;
    args.lanes.sync();
  }

  static MTLFAST_HD double sqrt_diagonal(const SolveArgs& args, int task) {
    const double squared = args.gramian[static_cast<int64>(task) * (args.num_tasks + 1)];
    return squared > 0.0 ? sqrt(squared) : 0.0;
  }

  // Advances the moving averages. The squares are as far from 0 and Inf as the raw Gramian's.
  static MTLFAST_HD void write_lengths(const SolveArgs& args, double* norms, double* lengths) {
    const double beta = args.options[0];
    const double eps = args.options[1];
    double* averages = args.state + 1;
    if (args.lanes.first()) args.state[0] += 1.0;
    args.lanes.sync();
    const double correction = 1.0 - pow(beta, args.state[0]);
    for (int i = args.lanes.index(); i < args.num_tasks; i += args.lanes.count()) {
      const double norm = sqrt_diagonal(args, i);
      norms[i] = norm * args.scale;
      averages[i] = beta * averages[i] + (1.0 - beta) * (norms[i] * norms[i]);
      const double running = sqrt(averages[i] / correction + eps);
      lengths[i] = running > 0.0 ? norms[i] / running : 0.0;
    }
    args.lanes.sync();
  }
};

}  // namespace mtlfast
