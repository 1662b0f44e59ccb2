// DB-MTL (Lin et al., 2023, arXiv 2308.12029): log losses, and task gradients of one common length.
//
// The gradients of log L_i are h_i = f_i g_i with f_i = 1 / (|L_i| + 1e-8); all are brought to the
// length m of the longest, so that the weight of a compared gradient is m / |compared gradient|.
// Without buffers the Gramian is that of the raw g_i and m = max f_j |g_j|; with them it is that of
// the buffers, which hold h_i, and m is the length of the longest.
//
// A zero gradient gets weight 0. kDegenerate: all are zero, or a loss is not above zero, where the
// logarithm has no meaning and |L_i| stands in.
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
    bool usable = true;
    for (int i = 0; i < num_tasks; ++i) {
      const double squared = args.gramian[static_cast<int64>(i) * num_tasks + i];
      const double loss = args.losses[i];
      norms[i] = squared > 0.0 ? sqrt(squared) : 0.0;
      const double length = buffered ? norms[i] : norms[i] / (fabs(loss) + kOffset);
      if (length > longest) longest = length;
      usable = usable && loss > 0.0;
    }
    for (int i = 0; i < num_tasks; ++i) {
      args.weights[i] = norms[i] > 0.0 ? longest / norms[i] : 0.0;
    }
    return usable && longest > 0.0 ? kOk : kDegenerate;
  }

 private:
  static constexpr double kOffset = 1e-8;  // the paper's, inside the logarithm
};

}  // namespace mtlfast
