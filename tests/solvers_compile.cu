// Compiled by nvcc, never run: every solver of the table as device code.
#include <math.h>

#include "solvers/solver.h"
#include "solvers/table.h"

#define MTLFAST_KERNEL(name, Solver)                                                     \
  __global__ void solve_##Solver(mtlfast::SolveArgs args, double* scaled, int* status) { \
    *status = mtlfast::solve<mtlfast::Solver>(args, scaled);                             \
  }                                                                                      \
  long long workspace_##Solver(int num_tasks) { return mtlfast::Solver::workspace(num_tasks); }

MTLFAST_SOLVERS(MTLFAST_KERNEL)
