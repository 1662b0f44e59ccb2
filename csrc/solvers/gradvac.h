// GradVac (Wang et al., ICLR 2021, arXiv 2010.05874) on the Gramian.
//
// Task i starts from its own gradient v and meets the tasks j in the order given. Where the cosine
// between v and the original g_j is below its goal phi_ij, v gets the share of g_j that lifts it to
// the goal; then the goal moves towards the cosine found. With coefficients c, v = J'c and
// h_j = <v, g_j> = (G c)_j, so a meeting costs O(1) and a change of v O(K).
// Each lane walks for a task of its own.
//
// options: beta in [0, 1], mean (0: sum over the tasks, 1: / K).
// state:   K * K goals phi, row i those of task i. All zeros is the fresh state.
// order:   row i lists the tasks in the order met; entries outside 0 .. K-1 are passed over.
//          Without it the rows are drawn from rng, and without rng task i meets 0, 1, .., K-1.
#pragma once

#include "solver.h"
#include "walks.h"

namespace mtlfast {

struct Gradvac {
  static constexpr int num_options = 2;
  static constexpr bool collective = true;
  static MTLFAST_HD int64 state_size(int num_tasks) {
    return static_cast<int64>(num_tasks) * num_tasks;
  }
  static MTLFAST_HD int64 workspace(int num_tasks) {
    return num_tasks + Walks::workspace(num_tasks, 3);
  }

  static MTLFAST_HD int run(const SolveArgs& args) {
    const int num_tasks = args.num_tasks;
    const Lanes lanes = args.lanes;
    const int64 size = static_cast<int64>(lane_stride(lanes)) * num_tasks;
    double* norms = args.workspace;
    double* shares = norms + num_tasks;
    double* products = shares + size;
    const Walks walks(args, products + size);
    fill(args.weights, num_tasks, 0.0, kOk, lanes);
    for (int i = lanes.index(); i < num_tasks; i += lanes.count()) {
      const double squared = args.gramian[static_cast<int64>(i) * num_tasks + i];
      norms[i] = squared > 0.0 ? sqrt(squared) : 0.0;
    }
    lanes.sync();
    bool finite = true;
    for (int start = 0; start < num_tasks; start += lanes.count()) {
      const int i = start + lanes.index();
      if (i < num_tasks) {
        const bool well =
            walk(args, walks, i, norms, products + lanes.index(), shares + lanes.index());
        finite = finite && well;
      }
      add_walks(args, shares, start);
    }
    end_walks(args, args.options[1] != 0.0, walks.rng != nullptr);
    return lanes.all(finite) ? kOk : kDegenerate;
  }

 private:
  static constexpr double kVanished = 64.0 * kEpsilon;           // of |v|^2, to (sum |c_k| n_k)^2
  static constexpr double kHighestGoal = 1.0 - 64.0 * kEpsilon;  // no share of g_j lifts v to 1
  static constexpr double kLongest = 1e100;  // of v, whose square must be finite

  // products: [K], h = G c; shares: [K], takes c. False where v would have become too long.
  static MTLFAST_HD bool walk(const SolveArgs& args, const Walks& walks, int i, const double* norms,
                              double* products, double* shares) {
    const int num_tasks = args.num_tasks;
    const int stride = walks.stride;
    const double beta = args.options[0];
    const double* own = args.gramian + static_cast<int64>(i) * num_tasks;
    double* goals = args.state + static_cast<int64>(i) * num_tasks;
    for (int k = 0; k < num_tasks; ++k) {
      products[k * stride] = own[k];
      shares[k * stride] = 0.0;
    }
    shares[i * stride] = 1.0;
    double length2 = own[i];   // |v|^2
    double spread = norms[i];  // sum |c_k| n_k, the scale of its rounding error
    bool finite = true;
    walks.start(i);
    for (int position = 0; position < num_tasks; ++position) {
      const int j = walks.met(i, position);
      if (j < 0 || j == i) continue;
      // A vector of length zero has no cosine, and one that is rounding has none to speak of.
      if (!(norms[j] > 0.0 && length2 > kVanished * spread * spread)) continue;
      const double length = sqrt(length2);
      const double cosine = fmax(-1.0, fmin(products[j * stride] / (length * norms[j]), 1.0));
      const double goal = fmin(goals[j], kHighestGoal);
      goals[j] = (1.0 - beta) * goals[j] + beta * cosine;
      const double sine = sine_of(goal);
      if (!(cosine < goal && sine > 0.0)) continue;
      const double lift = length * (goal * sine_of(cosine) - cosine * sine) / sine;
      if (!(spread + lift < kLongest)) {
        finite = false;
        continue;
      }
      const double share = lift / norms[j];
      const double* row = args.gramian + static_cast<int64>(j) * num_tasks;
      shares[j * stride] += share;
      spread += lift;
      length2 = 0.0;
      for (int k = 0; k < num_tasks; ++k) {
        products[k * stride] += share * row[k];
        length2 += shares[k * stride] * products[k * stride];
      }
    }
    return finite;
  }

  static MTLFAST_HD double sine_of(double cosine) {
    const double squared = (1.0 - cosine) * (1.0 + cosine);
    return squared > 8.0 * kEpsilon ? sqrt(squared) : 0.0;  // the cosine's own rounding
  }
};

}  // namespace mtlfast
