// One warp solves one K x K problem.
#pragma once

#include "../solvers/solver.h"
#include "params.h"
#include "target.h"

namespace mtlfast {

template <class Solver>
MTLFAST_DEVICE void solve_one(const SolveParams& params) {
  MTLFAST_DYNAMIC_SHARED(shared);
  const int64 count = params.num_tasks;
  double* scratch = params.scratch != nullptr ? params.scratch : reinterpret_cast<double*>(shared);
  const SolveArgs args = {params.num_tasks,
                          params.gramian,
                          1.0,
                          params.losses,
                          params.inputs,
                          params.order,
                          params.rng,
                          params.state,
                          params.options,
                          params.weights,
                          scratch + count * count,
                          Lanes::warp()};
  const int status = solve<Solver>(args, scratch);
  if (threadIdx.x == 0 && params.status != nullptr) *params.status = status;
}

}  // namespace mtlfast
