// The one list of solvers: name in Python, class in C++.
//
// Each class has num_options, state_size(K), workspace(K) and run(SolveArgs).
#pragma once

#include "alignedmtl.h"
#include "cagrad.h"
#include "config.h"
#include "gradnorm.h"
#include "imtl.h"
#include "imtlg.h"
#include "krum.h"
#include "pcgrad.h"

#define MTLFAST_SOLVERS(X)     \
  X("aligned_mtl", AlignedMtl) \
  X("cagrad", Cagrad)          \
  X("config", Config)          \
  X("gradnorm", Gradnorm)      \
  X("imtl", Imtl)              \
  X("imtlg", Imtlg)            \
  X("krum", Krum)              \
  X("pcgrad", Pcgrad)
