// The K x K solvers by name, on the host.
#pragma once

#include "../solvers/solver.h"

namespace mtlfast::cpu {

struct SolverEntry {
  const char* name;
  const char* kernel;  // its name on a GPU
  int num_options;
  int64 (*state_size)(int num_tasks);
  int64 (*workspace)(int num_tasks);
  int (*run)(const SolveArgs& args);  // provides scratch and workspace; returns a Status
};

const SolverEntry* find_solver(const char* name);  // null: there is none

}  // namespace mtlfast::cpu
