// The one list of solvers: name in Python, class in C++.
//
// Each class has num_options, state_size(K), workspace(K) and run(SolveArgs).
#pragma once

#include "alignedmtl.h"
#include "cagrad.h"
#include "config.h"
#include "cosmos.h"
#include "crmogm.h"
#include "dbmtl.h"
#include "dtp.h"
#include "dualproj.h"
#include "dwa.h"
#include "excess_mtl.h"
#include "fairgrad.h"
#include "famo.h"
#include "gls.h"
#include "gradnorm.h"
#include "gradvac.h"
#include "imtl.h"
#include "imtlg.h"
#include "krum.h"
#include "lbtw.h"
#include "learned_scales.h"
#include "mgda.h"
#include "moco.h"
#include "modo.h"
#include "nash.h"
#include "pbi.h"
#include "pcd.h"
#include "pcgrad.h"
#include "rlw.h"
#include "sdmgrad.h"
#include "si.h"
#include "stch.h"
#include "upgrad.h"

#define MTLFAST_SOLVERS(X)     \
  X("aligned_mtl", AlignedMtl) \
  X("cagrad", Cagrad)          \
  X("config", Config)          \
  X("cosmos", Cosmos)          \
  X("crmogm", Crmogm)          \
  X("dbmtl", Dbmtl)            \
  X("dtp", Dtp)                \
  X("dualproj", Dualproj)      \
  X("dwa", Dwa)                \
  X("excessmtl", ExcessMtl)    \
  X("fairgrad", Fairgrad)      \
  X("famo", Famo)              \
  X("gls", Gls)                \
  X("gradnorm", Gradnorm)      \
  X("gradvac", Gradvac)        \
  X("imtl", Imtl)              \
  X("imtlg", Imtlg)            \
  X("imtll", Imtll)            \
  X("krum", Krum)              \
  X("lbtw", Lbtw)              \
  X("mgda", Mgda)              \
  X("moco", Moco)              \
  X("modo", Modo)              \
  X("nash_mtl", Nash)          \
  X("pbi", Pbi)                \
  X("pcd", Pcd)                \
  X("pcgrad", Pcgrad)          \
  X("random", Random)          \
  X("rlw", Rlw)                \
  X("sdmgrad", Sdmgrad)        \
  X("si", Si)                  \
  X("stch", Stch)              \
  X("upgrad", Upgrad)          \
  X("uw", Uw)
