// The one list of solvers: name in Python, class in C++.
//
// Each class has num_options, state_size(K), workspace(K) and run(SolveArgs).
#pragma once

#include "cagrad.h"
#include "gradnorm.h"
#include "pcgrad.h"

#define MTLFAST_SOLVERS(X) \
  X("pcgrad", Pcgrad)      \
  X("cagrad", Cagrad)      \
  X("gradnorm", Gradnorm)
