// DB-MTL (Lin et al., 2023, arXiv 2308.12029): log losses, and task gradients of one common length.
//
// The gradients of log L_i are h_i = g_i / (L_i + 1e-8); all are brought to the length m of the
// longest, so that the weight of a compared gradient is m / |compared gradient|. Without buffers the
// Gramian is that of the raw g_i and m = max |g_j| / (L_j + 1e-8); with them it is that of the
// buffers, which hold h_i, and m is the length of the longest.
//
// A zero gradient gets weight 0, and so does a task whose loss is not above zero: it has no
// logarithm. kDegenerate: there is such a task, or all gradients are zero.
//
// options: buffered (0: the Gramian of the raw gradients).
// state:   null, or [0] the number of calls so far.
#pragma once

#include "solver.h"

namespace mtlfast {

struct Dbmtl {
  static constexpr int num_options = 1;
  static MTLFAST_HD int64 state_size(int) { return 1; }
  static MTLFAST_HD int64 workspace(int num_tasks) { return num_tasks; }

  static MTLFAST_HD int run(const SolveArgs& args) {
    const int num_tasks = args.num_tasks;
    const bool buffered = args.options[0] != 0.0;
    if (args.losses == nullptr) return fill(args.weights, num_tasks, nan(""), kNonFinite);
    if (args.state != nullptr) args.state[0] += 1.0;
    double* norms = args.workspace;
    double longest = 0.0;
    bool positive = true;
    for (int i = 0; i < num_tasks; ++i) {
      const double squared = args.gramian[static_cast<int64>(i) * num_tasks + i];
      const double loss = args.losses[i];
      norms[i] = squared > 0.0 && loss > 0.0 ? sqrt(squared) : 0.0;
      const double length = buffered ? norms[i] : norms[i] / (loss + kOffset);
      if (length > longest) longest = length;
      positive = positive && loss > 0.0;
    }
    for (int i = 0; i < num_tasks; ++i) {
      args.weights[i] = norms[i] > 0.0 ? longest / norms[i] : 0.0;
    }
    return positive && longest > 0.0 ? kOk : kDegenerate;
  }

 private:
  static constexpr double kOffset = 1e-8;  // the paper's, inside the logarithm
};

}  // namespace mtlfast
