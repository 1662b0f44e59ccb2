// The one list of solvers: name in Python, class in C++.
//
// Each class has num_options, state_size(K), workspace(K) and run(SolveArgs).
#pragma once

#include "cagrad.h"
#include "cosmos.h"
#include "dtp.h"
#include "dwa.h"
#include "famo.h"
#include "gls.h"
#include "gradnorm.h"
#include "lbtw.h"
#include "learned_scales.h"
#include "pbi.h"
#include "pcgrad.h"
#include "rlw.h"
#include "si.h"
#include "stch.h"

#define MTLFAST_SOLVERS(X) \
  X("pcgrad", Pcgrad)      \
  X("cagrad", Cagrad)      \
  X("gradnorm", Gradnorm)  \
  X("rlw", Rlw)            \
  X("random", Random)      \
  X("uw", Uw)              \
  X("imtll", Imtll)        \
  X("dwa", Dwa)            \
  X("famo", Famo)          \
  X("stch", Stch)          \
  X("gls", Gls)            \
  X("si", Si)              \
  X("cosmos", Cosmos)      \
  X("pbi", Pbi)            \
  X("lbtw", Lbtw)          \
  X("dtp", Dtp)
