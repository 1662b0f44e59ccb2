// IMTL-G (Liu et al., ICLR 2021, "Towards Impartial Multi-task Learning"): weights with sum 1 whose
// update has the same projection on every task gradient.
//
// With the norms n, the cosine matrix C and x = C+ 1, the weights are x_i / n_i over their sum. Tasks
// with a zero gradient leave the solve and get 0. Where C is singular, x makes the projections as
// equal as they can be (kDegenerate). Where the sum, or x itself, is rounding, the answer is
// 1 / n_i over its sum, as for orthogonal gradients (kDegenerate); without a gradient all are 0.
#pragma once

#include "cosines.h"
#include "solver.h"

namespace mtlfast {

struct Imtlg {
  static constexpr bool collective = true;
  static constexpr int num_options = 0;
  static MTLFAST_HD int64 state_size(int) { return 0; }
  static MTLFAST_HD int64 workspace(int num_tasks) { return Cosines::workspace(num_tasks); }

  static MTLFAST_HD int run(const SolveArgs& args) { return run(args, nullptr, args.workspace); }

  // For gradients r_i g_i with r = ratios (null: ones), the weights times r_i: what g_i itself gets.
  static MTLFAST_HD int run(const SolveArgs& args, const double* ratios, double* workspace) {
    const int num_tasks = args.num_tasks;
    const Lanes lanes = args.lanes;
    const Cosines cosines(num_tasks, args.gramian, nullptr, lanes, workspace);
    bool settled = cosines.energy() > 0.0;
    for (int i = lanes.index(); i < num_tasks; i += lanes.count()) {
      args.weights[i] = cosines.solution(i) * cosines.inverse_norm(i);
    }
    lanes.sync();
    settled = settled && normalise(args.weights, ratios, num_tasks, lanes);
    if (settled) {
      if (!cosines.converged()) return kNotConverged;
      return cosines.full_rank() ? kOk : kDegenerate;
    }
    for (int i = lanes.index(); i < num_tasks; i += lanes.count()) {
      args.weights[i] = cosines.inverse_norm(i);
    }
    lanes.sync();
    if (!normalise(args.weights, ratios, num_tasks, lanes)) {
      fill(args.weights, num_tasks, 0.0, kOk, lanes);
    }
    return kDegenerate;
  }

 private:
  static constexpr double kCancelled = 16.0 * kEpsilon;  // of the sum, to K times that of the sizes

  // Divides by the sum of w_i / r_i. False, and nothing done, where it is rounding.
  static MTLFAST_HD bool normalise(double* weights, const double* ratios, int num_tasks,
                                   Lanes lanes) {
    const Lanes team = lanes.adders(num_tasks);
    double total = 0.0;
    double size = 0.0;
    for (int i = team.index(); i < num_tasks; i += team.count()) {
      const double share = ratios != nullptr ? weights[i] / ratios[i] : weights[i];
      total += share;
      size += fabs(share);
    }
    total = team.sum(total);
    size = team.sum(size);
    lanes.sync();
    if (!(fabs(total) > kCancelled * num_tasks * size) || !is_finite(size)) return false;
    for (int i = lanes.index(); i < num_tasks; i += lanes.count()) weights[i] /= total;
    lanes.sync();
    return true;
  }
};

}  // namespace mtlfast
