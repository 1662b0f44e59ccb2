// Krum and Multi-Krum (Blanchard et al., NIPS 2017, arXiv 1703.02757): the mean of the task
// gradients that lie closest to their neighbours.
//
// The distances are D_ij = G_ii + G_jj - 2 G_ij >= 0, and the score of a task is the sum of its
// K - num_byzantine - 2 smallest distances to others. The num_selected best scores get
// 1 / num_selected each; of equal scores the lowest index is taken. Each score is summed in
// ascending order, so that tasks with the same distances have the same score to the last bit.
// With one task, or two and no byzantine one, nothing tells tasks apart: 1/K each (kDegenerate
// unless that is what num_selected asks for). Each lane scores tasks of its own.
//
// options: num_byzantine, num_selected, norm (0: squared distances, 1: distances).
#pragma once

#include "per_lane.h"
#include "solver.h"
#include "sort.h"

namespace mtlfast {

struct Krum {
  static constexpr int num_options = 3;
  static constexpr bool collective = true;
  static MTLFAST_HD int64 state_size(int) { return 0; }
  static MTLFAST_HD int64 workspace(int num_tasks) { return (1 + kLargestStride) * num_tasks; }

  static MTLFAST_HD int run(const SolveArgs& args) {
    const int num_tasks = args.num_tasks;
    const Lanes lanes = args.lanes;
    const int num_neighbours = num_tasks - static_cast<int>(args.options[0]) - 2;
    const int num_selected = static_cast<int>(args.options[1]);
    if (num_neighbours < 1 || num_selected < 1 || num_selected > num_tasks) {
      const int status = num_selected == num_tasks ? kOk : kDegenerate;
      return fill(args.weights, num_tasks, 1.0 / num_tasks, status, lanes);
    }
    double* scores = args.workspace;
    double* distances = scores + num_tasks + lanes.index();
    const int stride = lane_stride(lanes);
    for (int i = lanes.index(); i < num_tasks; i += lanes.count()) {
      write_distances(args, i, distances, stride);
      sort_ascending(distances, num_tasks - 1, stride);
      scores[i] = 0.0;
      for (int k = 0; k < num_neighbours; ++k) scores[i] += distances[k * stride];
    }
    fill(args.weights, num_tasks, 0.0, kOk, lanes);
    for (int round = 0; round < num_selected; ++round) {
      int best = -1;
      for (int i = lanes.index(); i < num_tasks; i += lanes.count()) {
        if (args.weights[i] != 0.0) continue;
        if (best < 0 || scores[i] < scores[best]) best = i;
      }
      best = lanes.index_of_smallest(best < 0 ? 0.0 : scores[best], best);
      if (lanes.first()) args.weights[best] = 1.0 / num_selected;
      lanes.sync();
    }
    return kOk;
  }

 private:
  // The K - 1 distances from task i to the others.
  static MTLFAST_HD void write_distances(const SolveArgs& args, int i, double* distances,
                                         int stride) {
    const int64 num_tasks = args.num_tasks;
    const double* own = args.gramian + i * num_tasks;
    int count = 0;
    for (int j = 0; j < num_tasks; ++j) {
      if (j == i) continue;
      // The upper triangle only: rounding may tell <g_i, g_j> from <g_j, g_i>.
      const double product = j > i ? own[j] : args.gramian[j * num_tasks + i];
      double distance = (own[i] + args.gramian[j * num_tasks + j]) - 2.0 * product;
      if (!(distance > 0.0)) distance = 0.0;
      distances[stride * count++] = args.options[2] != 0.0 ? sqrt(distance) : distance;
    }
  }
};

}  // namespace mtlfast
