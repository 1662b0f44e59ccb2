// CAGrad (Liu et al., NeurIPS 2021, arXiv 2110.14048), exactly.
//
// With g0 the mean gradient, b = J g0 and rho = c |g0|, the dual is min b'w + rho |J'w| over the
// simplex and the answer d = g0 + rho g_w / |g_w|, g_w = J'w. Its optimality conditions are those
// of min |J'w + tau g0|^2 with tau = |g_w| / rho, which leaves one equation, |J'w(tau)| = rho tau.
// The left side crosses the line once, and on one support its square is A + C tau^2, so that
// tau = sqrt(A / (rho^2 - C)) there; a bracket guards the step.
//
// Tasks with a zero gradient leave the solve but count in the mean. Where g0 = 0 or the optimum is
// g_w = 0 the dual gives no direction: the answer is kDegenerate and g0, weights 1/K (rescaled like
// any other answer).
//
// options: c in [0, 1), rescale (0: none, 1: / (1 + c^2), 2: / (1 + c)), sum (1: times K).
#pragma once

#include "simplex_qp.h"
#include "solver.h"

namespace mtlfast {

struct Cagrad {
  static constexpr bool collective = true;
  static constexpr int num_options = 3;
  static MTLFAST_HD int64 state_size(int) { return 0; }
  static MTLFAST_HD int64 workspace(int num_tasks) {
    return num_tasks + SimplexQp::workspace(num_tasks);
  }

  static MTLFAST_HD int run(const SolveArgs& args) {
    const int num_tasks = args.num_tasks;
    const Lanes lanes = args.lanes;
    const double c = args.options[0];
    double factor = 1.0;
    if (args.options[1] == 1.0) factor = 1.0 / (1.0 + c * c);
    if (args.options[1] == 2.0) factor = 1.0 / (1.0 + c);
    if (args.options[2] != 0.0) factor *= num_tasks;
    fill(args.weights, num_tasks, factor / num_tasks, kOk, lanes);

    double* linear = args.workspace;
    for (int i = lanes.index(); i < num_tasks; i += lanes.count()) {
      const double* row = args.gramian + static_cast<int64>(i) * num_tasks;
      double sum = 0.0;
      for (int j = 0; j < num_tasks; ++j) sum += row[j];
      linear[i] = sum / num_tasks;
    }
    lanes.sync();
    const Lanes team = lanes.adders(num_tasks);
    double total = 0.0;     // |g0|^2 K
    double norm_sum = 0.0;  // rounding scale of |g0| K
    double largest_norm = 0.0;
    double smallest_norm = kHuge;
    int start = -1;  // the task with the smallest b_i leads for large tau
    for (int i = team.index(); i < num_tasks; i += team.count()) {
      const double squared = args.gramian[static_cast<int64>(i) * (num_tasks + 1)];
      total += linear[i];
      if (!(squared > 0.0)) continue;
      const double norm = sqrt(squared);
      norm_sum += norm;
      if (norm > largest_norm) largest_norm = norm;
      if (norm < smallest_norm) smallest_norm = norm;
      if (start < 0 || linear[i] < linear[start]) start = i;
    }
    total = team.sum(total);
    norm_sum = team.sum(norm_sum);
    largest_norm = team.largest(largest_norm);
    smallest_norm = team.smallest(smallest_norm);
    start = team.index_of_smallest(start < 0 ? 0.0 : linear[start], start);
    const double mean_norm2 = total / num_tasks;
    const double mean_scale = norm_sum / num_tasks;
    if (start < 0 || !(mean_norm2 > kMeanNoise * mean_scale * mean_scale)) return kDegenerate;
    if (c == 0.0) return kOk;
    const double rho = c * sqrt(mean_norm2);

    SimplexQp qp(num_tasks, args.gramian, linear, start, lanes, linear + num_tasks);
    const double floor = kNoise * smallest_norm / rho;  // below it |g_w| is rounding
    double low = 0.0;
    double high = 1.001 * largest_norm / rho;
    double tau = 1.0 / c;  // |g_w| = |g0|
    int status = kNotConverged;
    for (int iteration = 0; iteration < kMaxIterations && status == kNotConverged; ++iteration) {
      const bool settled = qp.solve(tau);
      const double distance2 = qp.hull_distance2();
      const double room = rho * rho - qp.drift2();
      const bool too_high = distance2 < room * tau * tau;
      if (too_high && tau <= floor) return kDegenerate;
      double next = room > 0.0 ? sqrt(distance2 / room) : kHuge;
      if (too_high) {
        high = tau;
      } else {
        low = tau;
      }
      const double nearby = 4.0 * kEpsilon * tau;
      if (settled && (fabs(next - tau) <= nearby || high - low <= nearby)) status = kOk;
      if (next < floor) next = floor;
      if (!(next > low && next < high)) next = sqrt((low > floor ? low : floor) * high);
      if (status == kNotConverged) tau = next;
    }

    double spread = 0.0;
    const double norm = sqrt(qp.norm2(&spread));
    if (!(norm > kNoise * spread)) return kDegenerate;
    for (int i = lanes.index(); i < num_tasks; i += lanes.count()) {
      args.weights[i] += factor * rho / norm * qp.weights()[i];
    }
    lanes.sync();
    return status;
  }

 private:
  static constexpr int kMaxIterations = 128;
  static constexpr double kMeanNoise = 8.0 * kEpsilon;  // of |g0|^2, to (sum n_i / K)^2
  static constexpr double kNoise = 4.8e-7;  // sqrt(1024 epsilon), of |g_w|, to sum w_i n_i
};

}  // namespace mtlfast
