// RLW, random loss weighting (Lin et al., TMLR 2022, arXiv 2111.10603): w = softmax(z), z normal.
//
// inputs: the K numbers z; without them they are drawn from rng, and without rng they are zero.
#pragma once

#include "elementary.h"
#include "random.h"
#include "solver.h"

namespace mtlfast {

struct Rlw {
  static constexpr int num_options = 0;
  static MTLFAST_HD int64 state_size(int) { return 0; }
  static MTLFAST_HD int64 workspace(int) { return 0; }

  static MTLFAST_HD int run(const SolveArgs& args) {
    const bool drawn = args.inputs == nullptr && args.rng != nullptr;
    fill(args.weights, args.num_tasks, 0.0, kOk);
    for (int i = 0; i < args.num_tasks; ++i) {
      if (drawn) args.weights[i] = draw_normal(args.rng, i);
      if (args.inputs != nullptr) args.weights[i] = args.inputs[i];
    }
    softmax(args.weights, args.num_tasks, 1.0, args.weights);
    if (drawn) args.rng[1] = static_cast<int64>(static_cast<uint64>(args.rng[1]) + 1);
    return kOk;
  }
};

struct Random : Rlw {};  // the same under its other name

}  // namespace mtlfast
