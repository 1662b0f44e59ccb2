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
  static constexpr int num_options = 2;
  static MTLFAST_HD int64 state_size(int) { return 0; }
  static MTLFAST_HD int64 workspace(int num_tasks) {
    const int64 count = num_tasks;
    return count * count + SimplexQp::workspace(num_tasks);
  }

  static MTLFAST_HD int run(const SolveArgs& args) {
    const int num_tasks = args.num_tasks;
    const bool lengths = args.options[0] != 0.0;
    const bool values = args.options[1] != 0.0;
    if (values && (args.losses == nullptr || !all_finite(args.losses, num_tasks))) {
      return fill(args.weights, num_tasks, nan(""), kNonFinite);
    }
    int zeros = 0;
    for (int i = 0; i < num_tasks; ++i) {
      args.weights[i] = diagonal(args, i) > 0.0 ? 0.0 : 1.0;
      if (args.weights[i] > 0.0) ++zeros;
    }
    if (zeros > 0) {
      for (int i = 0; i < num_tasks; ++i) args.weights[i] /= zeros;
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
    int start = 0;
    for (int i = 0; i < num_tasks; ++i) {
      const double* row = args.gramian + static_cast<int64>(i) * num_tasks;
      double* scaled = gramian + static_cast<int64>(i) * num_tasks;
      const double own = factors[i] / longest;
      for (int j = 0; j < num_tasks; ++j) scaled[j] = row[j] * own * (factors[j] / longest);
      if (scaled[i] < gramian[static_cast<int64>(start) * (num_tasks + 1)]) start = i;
    }
    SimplexQp qp(num_tasks, gramian, nullptr, start,
                 gramian + static_cast<int64>(num_tasks) * num_tasks);
    if (!qp.solve(0.0)) status = kNotConverged;
    for (int i = 0; i < num_tasks; ++i) args.weights[i] = factors[i] * qp.weights()[i];
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
    double longest = 0.0;
    bool usable = true;
    for (int i = 0; i < args.num_tasks; ++i) {
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
    return usable ? longest : 0.0;
  }
};

}  // namespace mtlfast
