// MGDA (Désidéri 2012; Sener and Koltun, NeurIPS 2018, arXiv 1810.04650), exactly.
//
// d = J'w is the shortest mixture of the gradients, w in the simplex; it is unique even where w is
// not. The rows may be normalised first, g_i / s_i: then d is the shortest mixture of the normalised
// rows, and the weights are w_i / s_i.
//
// A zero gradient makes 0 the exact answer: the tasks that have one share the weight 1. Where the
// losses cannot divide (one is not positive, or a quotient leaves the doubles), they are left out of
// s_i and the answer is kDegenerate.
//
// options: lengths (0, 1: s_i has the factor n_i), values (0, 1: s_i has the factor L_i).
// losses:  read only with values.
#pragma once

#include "simplex_qp.h"
#include "solver.h"

namespace mtlfast {

struct Mgda {
  static constexpr bool collective = true;
  static constexpr int num_options = 2;
  static MTLFAST_HD int64 state_size(int) { return 0; }
  static MTLFAST_HD int64 workspace(int num_tasks) {
    const int64 count = num_tasks;
    return count * count + SimplexQp::workspace(num_tasks);
  }

  static MTLFAST_HD int run(const SolveArgs& args) {
    const int num_tasks = args.num_tasks;
    const Lanes lanes = args.lanes;
    const bool lengths = args.options[0] != 0.0;
    const bool values = args.options[1] != 0.0;
    if (values && (args.losses == nullptr || !all_finite(args.losses, num_tasks, lanes))) {
      return fill(args.weights, num_tasks, nan(""), kNonFinite, lanes);
    }
    double zeros = 0.0;
    for (int i = lanes.index(); i < num_tasks; i += lanes.count()) {
      args.weights[i] = diagonal(args, i) > 0.0 ? 0.0 : 1.0;
      zeros += args.weights[i];
    }
    zeros = lanes.sum(zeros);
    if (zeros > 0.0) {
      for (int i = lanes.index(); i < num_tasks; i += lanes.count()) args.weights[i] /= zeros;
      lanes.sync();
      return kOk;
    }

    double* factors = args.weights;  // 1 / s_i
    int status = kOk;
    double longest = invert(args, lengths, values, factors);
    if (!(longest > 0.0 && is_finite(longest))) {
      longest = invert(args, lengths, false, factors);
      status = kDegenerate;
    }
    double* gramian = args.workspace;  // of the normalised rows over the longest of them
    for (int i = lanes.row(); i < num_tasks; i += lanes.rows()) {
      const double* row = args.gramian + static_cast<int64>(i) * num_tasks;
      double* scaled = gramian + static_cast<int64>(i) * num_tasks;
      const double own = factors[i] / longest;
      for (int j = lanes.column(); j < num_tasks; j += lanes.columns()) {
        scaled[j] = row[j] * own * (factors[j] / longest);
      }
    }
    lanes.sync();
    const Lanes team = lanes.adders(num_tasks);
    double smallest = kHuge;
    int start = -1;
    for (int i = team.index(); i < num_tasks; i += team.count()) {
      const double squared = gramian[static_cast<int64>(i) * (num_tasks + 1)];
      if (start >= 0 && !(squared < smallest)) continue;
      smallest = squared;
      start = i;
    }
    start = team.index_of_smallest(smallest, start);
    SimplexQp qp(num_tasks, gramian, nullptr, start, lanes,
                 gramian + static_cast<int64>(num_tasks) * num_tasks);
    if (!qp.solve(0.0)) status = kNotConverged;
    for (int i = lanes.index(); i < num_tasks; i += lanes.count()) {
      args.weights[i] = factors[i] * qp.weights()[i];
    }
    lanes.sync();
    return status;
  }

 private:
  static MTLFAST_HD double diagonal(const SolveArgs& args, int task) {
    return args.gramian[static_cast<int64>(task) * (args.num_tasks + 1)];
  }

  // Writes 1 / s_i and returns the length of the longest normalised row in units of args.scale; 0 or
  // Inf where the losses cannot divide.
  static MTLFAST_HD double invert(const SolveArgs& args, bool lengths, bool values,
                                  double* factors) {
    const Lanes lanes = args.lanes;
    double longest = 0.0;
    bool usable = true;
    for (int i = lanes.index(); i < args.num_tasks; i += lanes.count()) {
      const double norm = sqrt(diagonal(args, i));
      factors[i] = lengths ? 1.0 / norm / args.scale : 1.0;
      if (values) {
        usable = usable && args.losses[i] > 0.0;
        factors[i] /= args.losses[i];
      }
      const double length = norm * factors[i];
      usable = usable && is_finite(factors[i]);
      if (length > longest) longest = length;
    }
    longest = lanes.largest(longest);
    lanes.sync();
    return lanes.all(usable) ? longest : 0.0;
  }
};

}  // namespace mtlfast
