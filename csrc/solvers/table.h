// The one list of solvers: name in Python, class in C++.
//
// Each class has num_options, state_size(K), workspace(K) and run(SolveArgs).
#pragma once

#include "cagrad.h"
#include "crmogm.h"
#include "dbmtl.h"
#include "gradnorm.h"
#include "moco.h"
#include "modo.h"
#include "pcgrad.h"
#include "sdmgrad.h"

#define MTLFAST_SOLVERS(X) \
  X("pcgrad", Pcgrad)      \
  X("cagrad", Cagrad)      \
  X("gradnorm", Gradnorm)  \
  X("moco", Moco)          \
  X("modo", Modo)          \
  X("sdmgrad", Sdmgrad)    \
  X("dbmtl", Dbmtl)        \
  X("crmogm", Crmogm)
