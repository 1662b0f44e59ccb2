#include <math.h>

#include "solve.h"

#include <cstring>
#include <vector>

#include "../solvers/table.h"

namespace mtlfast::cpu {
namespace {

template <class Solver>
int run(const SolveArgs& args) {
  // Small, and kept: a solver call is shorter than an allocation is worth.
  thread_local std::vector<double> buffer;
  const int64 count = static_cast<int64>(args.num_tasks) * args.num_tasks;
  const int64 needed = count + Solver::workspace(args.num_tasks);
  if (static_cast<int64>(buffer.size()) < needed) buffer.resize(static_cast<size_t>(needed));
  SolveArgs local = args;
  local.workspace = buffer.data() + count;
  return solve<Solver>(local, buffer.data());
}

constexpr SolverEntry kSolvers[] = {
#define MTLFAST_ENTRY(name, Solver) \
  {                                 \
      name,                         \
      "mtlfast_solve_" #Solver,     \
      Solver::num_options,          \
      Solver::state_size,           \
      Solver::workspace,            \
      run<Solver>},
    MTLFAST_SOLVERS(MTLFAST_ENTRY)
#undef MTLFAST_ENTRY
};

}  // namespace

const SolverEntry* find_solver(const char* name) {
  for (const SolverEntry& entry : kSolvers)
    if (std::strcmp(entry.name, name) == 0) return &entry;
  return nullptr;
}

}  // namespace mtlfast::cpu
