// SDMGrad (Xiao, Ban and Ji, NeurIPS 2023, arXiv 2305.18409): three independent batches.
//
// The Gramian [3K, 3K] is that of the batches' task gradients J1, J2, J3. With A = J1 J2' over the
// square of its typical norm, num_steps projected steps with momentum bring w near the minimum of
// |J'(w + r u)|^2 / 2, u = 1/K the preference, whose gradient A estimates: v <- momentum v + A (w +
// r u), w <- P(w - lr v). The update uses the third batch alone, with (w + r u) / (1 + r).
//
// The typical norm is the mean of sqrt(max(A_ii, 0)). Where no A_ii is positive (in two batches no
// task agrees with itself) it is the mean of sqrt(|g_i| |g_i'|), the most that it could be; where
// that is zero as well, w stays as it was (kDegenerate).
//
// options: lr, momentum, r, num_steps.
// state:   w [K]. All zeros is the fresh state, w = 1/K.
#pragma once

#include "simplex_projection.h"
#include "solver.h"

namespace mtlfast {

struct Sdmgrad {
  static constexpr bool collective = true;
  static constexpr int num_options = 4;
  static MTLFAST_HD int64 state_size(int rows) { return rows / 3; }
  static MTLFAST_HD int64 workspace(int rows) {
    const int64 num_tasks = rows / 3;
    return num_tasks * num_tasks + 2 * num_tasks;
  }

  static MTLFAST_HD int run(const SolveArgs& args) {
    const int rows = args.num_tasks;
    const int num_tasks = rows / 3;
    const Lanes lanes = args.lanes;
    if (args.state == nullptr || rows != 3 * num_tasks) {
      return fill(args.weights, rows, nan(""), kNonFinite, lanes);
    }
    const double pull = args.options[2];
    double* point = args.state;
    start_on_simplex(point, num_tasks, lanes);
    const double unit = typical_norm(args.gramian, rows, num_tasks, lanes);
    if (unit > 0.0) descend(args, num_tasks, unit, point);
    fill(args.weights, 2 * num_tasks, 0.0, kOk, lanes);
    for (int i = lanes.index(); i < num_tasks; i += lanes.count()) {
      args.weights[2 * num_tasks + i] = (point[i] + pull / num_tasks) / (1.0 + pull);
    }
    lanes.sync();
    return unit > 0.0 ? kOk : kDegenerate;
  }

 private:
  static constexpr double kLargest = 1e100;  // of A over the typical norm, which may be mere noise

  static MTLFAST_HD double typical_norm(const double* gramian, int rows, int num_tasks,
                                        Lanes lanes) {
    double agreeing = 0.0;
    double longest = 0.0;
    for (int i = lanes.index(); i < num_tasks; i += lanes.count()) {
      const double* first = gramian + static_cast<int64>(i) * rows;
      const double* second = gramian + static_cast<int64>(num_tasks + i) * rows;
      const double own = first[num_tasks + i];
      const double first2 = first[i] > 0.0 ? first[i] : 0.0;
      const double second2 = second[num_tasks + i] > 0.0 ? second[num_tasks + i] : 0.0;
      if (own > 0.0) agreeing += sqrt(own);
      longest += sqrt(sqrt(first2) * sqrt(second2));
    }
    agreeing = lanes.sum(agreeing);
    longest = lanes.sum(longest);
    return (agreeing > 0.0 ? agreeing : longest) / num_tasks;
  }

  static MTLFAST_HD void descend(const SolveArgs& args, int num_tasks, double unit, double* point) {
    const Lanes lanes = args.lanes;
    const double lr = args.options[0];
    const double momentum = args.options[1];
    const double preferred = args.options[2] / num_tasks;
    const int num_steps = static_cast<int>(args.options[3]);
    double* matrix = args.workspace;
    double* velocity = matrix + static_cast<int64>(num_tasks) * num_tasks;
    double* moved = velocity + num_tasks;
    for (int i = lanes.row(); i < num_tasks; i += lanes.rows()) {
      const double* row = args.gramian + static_cast<int64>(i) * args.num_tasks + num_tasks;
      for (int j = lanes.column(); j < num_tasks; j += lanes.columns()) {
        matrix[static_cast<int64>(i) * num_tasks + j] = bounded(row[j] / unit / unit, kLargest);
      }
    }
    fill(velocity, num_tasks, 0.0, kOk, lanes);
    for (int step = 0; step < num_steps; ++step) {
      for (int i = lanes.index(); i < num_tasks; i += lanes.count()) {
        const double* row = matrix + static_cast<int64>(i) * num_tasks;
        double slope = 0.0;
        for (int j = 0; j < num_tasks; ++j) slope += row[j] * (point[j] + preferred);
        velocity[i] = momentum * velocity[i] + slope;
        moved[i] = point[i] - bounded(lr * velocity[i], kLongestStep);
      }
      lanes.sync();
      for (int i = lanes.index(); i < num_tasks; i += lanes.count()) point[i] = moved[i];
      lanes.sync();
      project_onto_simplex(point, num_tasks, lanes);
    }
  }
};

}  // namespace mtlfast
