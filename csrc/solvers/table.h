// The one list of solvers: name in Python, class in C++.
//
// Each class has num_options, state_size(K), workspace(K) and run(SolveArgs).
#pragma once

#include "cagrad.h"
#include "dualproj.h"
#include "gradnorm.h"
#include "mgda.h"
#include "pcd.h"
#include "pcgrad.h"
#include "upgrad.h"

#define MTLFAST_SOLVERS(X) \
  X("pcgrad", Pcgrad)      \
  X("cagrad", Cagrad)      \
  X("gradnorm", Gradnorm)  \
  X("mgda", Mgda)          \
  X("upgrad", Upgrad)      \
  X("dualproj", Dualproj)  \
  X("pcd", Pcd)
