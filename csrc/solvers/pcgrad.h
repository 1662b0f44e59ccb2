// PCGrad (Yu et al., NeurIPS 2020, arXiv 2001.06782) on the Gramian.
//
// Task i starts from its own gradient and meets the tasks j in the order given; where the running
// gradient conflicts with the original g_j, its projection on g_j is removed. With coefficients c,
// the running gradient is J'c and its product with g_j is h_j = (G c)_j, so a hit costs O(K).
// Each lane walks for a task of its own.
//
// options: include_self (0, 1: task i also meets itself), mean (0: sum over the tasks, 1: / K).
// order: row i lists the tasks in the order met; entries outside 0 .. K-1 are passed over. Without
// it the rows are drawn from rng, and without rng task i meets 0, 1, .., K-1.
#pragma once

#include "solver.h"
#include "walks.h"

namespace mtlfast {

struct Pcgrad {
  static constexpr int num_options = 2;
  static constexpr bool collective = true;
  static MTLFAST_HD int64 state_size(int) { return 0; }
  static MTLFAST_HD int64 workspace(int num_tasks) { return Walks::workspace(num_tasks, 3); }

  static MTLFAST_HD int run(const SolveArgs& args) {
    const int num_tasks = args.num_tasks;
    const Lanes lanes = args.lanes;
    const bool alone = lanes.count() == 1;
    const int64 size = static_cast<int64>(lane_stride(lanes)) * num_tasks;
    double* shares = args.workspace;
    double* products = shares + size;
    const Walks walks(args, products + size);
    fill(args.weights, num_tasks, 0.0, kOk, lanes);
    for (int start = 0; start < num_tasks; start += lanes.count()) {
      const int i = start + lanes.index();
      double* own = shares + lanes.index();
      if (!alone) {
        for (int k = 0; k < num_tasks; ++k) own[k * walks.stride] = 0.0;
      }
      // A single walk at a time can go straight into the weights.
      if (i < num_tasks) walk(args, walks, i, products + lanes.index(), alone ? args.weights : own);
      if (!alone) add_walks(args, shares, start);
    }
    end_walks(args, args.options[1] != 0.0, walks.rng != nullptr);
    return kOk;
  }

 private:
  // products: [K], h = G c; shares: [K], takes c.
  static MTLFAST_HD void walk(const SolveArgs& args, const Walks& walks, int i, double* products,
                              double* shares) {
    const int num_tasks = args.num_tasks;
    const int stride = walks.stride;
    const bool include_self = args.options[0] != 0.0;
    const double* own = args.gramian + static_cast<int64>(i) * num_tasks;
    for (int k = 0; k < num_tasks; ++k) products[k * stride] = own[k];
    shares[i * stride] += 1.0;
    walks.start(i);
    for (int position = 0; position < num_tasks; ++position) {
      const int j = walks.met(i, position);
      if (j < 0 || (j == i && !include_self)) continue;
      const double* row = args.gramian + static_cast<int64>(j) * num_tasks;
      if (!(products[j * stride] < 0.0 && row[j] > 0.0)) continue;
      const double share = products[j * stride] / row[j];
      shares[j * stride] -= share;
      for (int k = 0; k < num_tasks; ++k) products[k * stride] -= share * row[k];
    }
  }
};

}  // namespace mtlfast
