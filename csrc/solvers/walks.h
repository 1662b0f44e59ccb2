// What PCGrad and GradVac share: each task walks past the others in an order of its own.
//
// A walk meets K tasks one after another, and what it finds decides what follows. Were the lanes to
// share the O(K) work of a meeting, K^2 meetings in turn would each wait for a load, a division, a
// store and a sync, about 200 cycles: 4 us at K = 8, 200 us at K = 40, and the orders would be drawn
// one after another. So each lane walks for a task of its own and does that work alone: K / 32
// rounds of K meetings of some 250 + 20 K cycles, 2 us at K = 8 and 50 us at K = 40, and no sync
// within a round. The walks of a round end up in the weights in the order of their tasks.
#pragma once

#include "per_lane.h"
#include "random.h"
#include "solver.h"

namespace mtlfast {

struct Walks {
  int num_tasks;
  int stride;          // of a lane's scratch
  const int64* order;  // [K, K] or null
  const int64* rng;    // null where nothing is drawn
  int* drawn;          // a lane's scratch

  // Of `count` arrays of K doubles for each lane, the last of them for the order drawn.
  static MTLFAST_HD int64 workspace(int num_tasks, int count) {
    return count * kLargestStride * num_tasks;
  }

  MTLFAST_HD Walks(const SolveArgs& args, double* scratch)
      : num_tasks(args.num_tasks),
        stride(lane_stride(args.lanes)),
        order(args.order),
        rng(args.order == nullptr ? args.rng : nullptr),
        drawn(reinterpret_cast<int*>(scratch) + args.lanes.index()) {}  // only ever used as int

  MTLFAST_HD void start(int task) const {
    if (rng != nullptr) draw_order(rng, task, num_tasks, drawn, stride);
  }

  // The task that `task` meets at `position`, or -1.
  MTLFAST_HD int met(int task, int position) const {
    if (rng != nullptr) return drawn[position * stride];
    if (order == nullptr) return position;
    const int64 other = order[static_cast<int64>(task) * num_tasks + position];
    return other >= 0 && other < num_tasks ? static_cast<int>(other) : -1;
  }
};

// Adds what the lanes' walks from task `start` on gave each task to its weight.
MTLFAST_HD void add_walks(const SolveArgs& args, const double* shares, int start) {
  const Lanes lanes = args.lanes;
  const int stride = lane_stride(lanes);
  lanes.sync();
  for (int k = lanes.index(); k < args.num_tasks; k += lanes.count()) {
    for (int l = 0; l < lanes.count() && start + l < args.num_tasks; ++l) {
      args.weights[k] += shares[k * stride + l];
    }
  }
  lanes.sync();
}

// After the last walk: the mean, if that is wanted, and the counter of the draws.
MTLFAST_HD void end_walks(const SolveArgs& args, bool mean, bool drawn) {
  const Lanes lanes = args.lanes;
  if (mean) {
    for (int i = lanes.index(); i < args.num_tasks; i += lanes.count()) {
      args.weights[i] /= args.num_tasks;
    }
  }
  if (drawn && lanes.first()) {
    args.rng[1] = static_cast<int64>(static_cast<uint64>(args.rng[1]) + 1);
  }
  lanes.sync();
}

}  // namespace mtlfast
