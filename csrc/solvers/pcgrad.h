// PCGrad (Yu et al., NeurIPS 2020, arXiv 2001.06782) on the Gramian.
//
// Task i starts from its own gradient and meets the tasks j in the order given; where the running
// gradient conflicts with the original g_j, its projection on g_j is removed. With coefficients c,
// the running gradient is J'c and its product with g_j is h_j = (G c)_j, so a hit costs O(K).
//
// options: include_self (0, 1: task i also meets itself), mean (0: sum over the tasks, 1: / K).
// order: row i lists the tasks in the order met; entries outside 0 .. K-1 are passed over. Without
// it the rows are drawn from rng, and without rng task i meets 0, 1, .., K-1.
#pragma once

#include "random.h"
#include "solver.h"

namespace mtlfast {

struct Pcgrad {
  static constexpr int num_options = 2;
  static MTLFAST_HD int64 state_size(int) { return 0; }
  static MTLFAST_HD int64 workspace(int num_tasks) { return 2 * static_cast<int64>(num_tasks); }

  static MTLFAST_HD int run(const SolveArgs& args) {
    const int num_tasks = args.num_tasks;
    const bool include_self = args.options[0] != 0.0;
    const bool drawn = args.order == nullptr && args.rng != nullptr;
    double* products = args.workspace;                              // h = G c
    int* row_order = reinterpret_cast<int*>(products + num_tasks);  // only ever used as int
    fill(args.weights, num_tasks, 0.0, kOk);

    for (int i = 0; i < num_tasks; ++i) {
      const double* own = args.gramian + static_cast<int64>(i) * num_tasks;
      for (int k = 0; k < num_tasks; ++k) products[k] = own[k];
      args.weights[i] += 1.0;
      if (drawn) draw_order(args.rng, i, num_tasks, row_order);
      for (int position = 0; position < num_tasks; ++position) {
        int64 j = position;
        if (drawn) j = row_order[position];
        if (args.order != nullptr) j = args.order[static_cast<int64>(i) * num_tasks + position];
        if (j < 0 || j >= num_tasks || (j == i && !include_self)) continue;
        const double* row = args.gramian + j * num_tasks;
        if (!(products[j] < 0.0 && row[j] > 0.0)) continue;
        const double share = products[j] / row[j];
        args.weights[j] -= share;
        for (int k = 0; k < num_tasks; ++k) products[k] -= share * row[k];
      }
    }
    if (args.options[1] != 0.0) {
      for (int i = 0; i < num_tasks; ++i) args.weights[i] /= num_tasks;
    }
    if (drawn) args.rng[1] = static_cast<int64>(static_cast<uint64>(args.rng[1]) + 1);
    return kOk;
  }
};

}  // namespace mtlfast
