// UW (Kendall et al., CVPR 2018, arXiv 1705.07115) and IMTL-L (Liu et al., ICLR 2021): each loss is
// divided by a learned scale.
//
// UW minimises sum_i (e^-s_i L_i + s_i) / 2 over s too: w_i = e^-s_i / 2. IMTL-L minimises
// sum_i e^s_i L_i - s_i: w_i = e^s_i. A call returns the weights from before its own update of s.
// A task whose loss is not positive has no scale: its s stays (degenerate). |s| is kept below 50.
//
// options: lr, optimizer (0: Adam on bounded slopes, 1: SGD, 2: none; the slopes of this call are
//          left where the first moments would be), s of the first call.
// inputs:  with optimizer 2, s.
// state:   [0] calls so far, then K each of s, first moment, second moment. All zeros is the fresh
//          state.
#pragma once

#include "elementary.h"
#include "solver.h"

namespace mtlfast {

template <bool kVariance>  // true: UW, false: IMTL-L
struct LearnedScales {
  static constexpr int num_options = 3;
  static MTLFAST_HD int64 state_size(int num_tasks) {
    return 1 + 3 * static_cast<int64>(num_tasks);
  }
  static MTLFAST_HD int64 workspace(int) { return 0; }

  static MTLFAST_HD int run(const SolveArgs& args) {
    const int num_tasks = args.num_tasks;
    const double lr = args.options[0];
    const int optimizer = static_cast<int>(args.options[1]);
    if (args.losses == nullptr || args.state == nullptr ||
        (optimizer == 2 && args.inputs == nullptr)) {
      return fill(args.weights, num_tasks, nan(""), kNonFinite);
    }
    double* scalars = args.state + 1;
    double* first = scalars + num_tasks;
    double* second = first + num_tasks;
    if (args.state[0] == 0.0) fill(scalars, num_tasks, args.options[2], kOk);
    args.state[0] += 1.0;
    const Adam adam = Adam::at(args.state[0]);

    int status = kOk;
    for (int i = 0; i < num_tasks; ++i) {
      const double loss = args.losses[i];
      if (optimizer == 2) scalars[i] = args.inputs[i];
      const double factor = exp(kVariance ? -bounded(scalars[i]) : bounded(scalars[i]));
      args.weights[i] = kHalf * factor;
      if (optimizer == 2) first[i] = 0.0;
      if (!is_positive(loss)) {
        status = kDegenerate;
        continue;
      }
      const double scaled = fmin(factor * loss, kHuge);  // the fixed point is 1
      const double gap = scaled - 1.0;
      if (optimizer == 2) {
        first[i] = kSign * kHalf * gap;
        continue;
      }
      // Adam sees slopes within 1: a large one would fill its second moment for a thousand steps.
      const double slope = kSign * kHalf * (optimizer == 0 ? gap / fmax(scaled, 1.0) : gap);
      const double step = optimizer == 0 ? adam.step(slope, first + i, second + i) : slope;
      scalars[i] = bounded(scalars[i] - lr * step);
    }
    return status;
  }

 private:
  static constexpr double kSign = kVariance ? -1.0 : 1.0;
  static constexpr double kHalf = kVariance ? 0.5 : 1.0;

  static MTLFAST_HD double bounded(double scalar) { return fmin(fmax(scalar, -50.0), 50.0); }
};

using Uw = LearnedScales<true>;
using Imtll = LearnedScales<false>;

}  // namespace mtlfast
