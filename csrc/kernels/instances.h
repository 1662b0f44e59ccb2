// Every kernel by name, in groups that are compiled by themselves.
//
// Names: mtlfast_<what>_<element type>[_k<rows>]_<s or l, for small or large parameters>.
#pragma once

#include "target.h"

#define MTLFAST_FOR_TYPES(X, ...) \
  X(f32, float, __VA_ARGS__)      \
  X(f64, double, __VA_ARGS__)     \
  X(bf16, BFloat16, __VA_ARGS__)  \
  X(f16, Float16, __VA_ARGS__)

#if defined(MTLFAST_GROUP_GRAMIAN)
#include "gramian.h"

namespace mtlfast {

#define MTLFAST_GRAMIAN(type, T, rows)                                                   \
  MTLFAST_KERNEL(mtlfast_gramian_##type##_k##rows##_s, gramian_threads(rows),            \
                 gramian_blocks(rows), GramianParams<kSmallPayload>, (gramian<T, rows>)) \
  MTLFAST_KERNEL(mtlfast_gramian_##type##_k##rows##_l, gramian_threads(rows),            \
                 gramian_blocks(rows), GramianParams<kLargePayload>, (gramian<T, rows>))

MTLFAST_FOR_TYPES(MTLFAST_GRAMIAN, 2)
MTLFAST_FOR_TYPES(MTLFAST_GRAMIAN, 3)
MTLFAST_FOR_TYPES(MTLFAST_GRAMIAN, 4)
MTLFAST_FOR_TYPES(MTLFAST_GRAMIAN, 6)
MTLFAST_FOR_TYPES(MTLFAST_GRAMIAN, 8)
// In float64 the triangle of more than 8 rows does not fit the registers.
MTLFAST_GRAMIAN(f32, float, 12)
MTLFAST_GRAMIAN(bf16, BFloat16, 12)
MTLFAST_GRAMIAN(f16, Float16, 12)

}  // namespace mtlfast
#endif

#if defined(MTLFAST_GROUP_COMBINE)
#include "combine.h"

namespace mtlfast {

#define MTLFAST_COMBINE(type, T, unused)                                                       \
  MTLFAST_KERNEL(mtlfast_combine_##type##_s, kCombineThreads, 4, CombineParams<kSmallPayload>, \
                 (combine<T>))                                                                 \
  MTLFAST_KERNEL(mtlfast_combine_##type##_l, kCombineThreads, 4, CombineParams<kLargePayload>, \
                 (combine<T>))

MTLFAST_FOR_TYPES(MTLFAST_COMBINE, )
MTLFAST_KERNEL(mtlfast_upload, 256, 1, UploadParams, upload)

}  // namespace mtlfast
#endif

#if defined(MTLFAST_GROUP_SOLVE)
#include "../solvers/table.h"
#include "solve.h"

namespace mtlfast {

#define MTLFAST_SOLVE(name, Solver) \
  MTLFAST_KERNEL(mtlfast_solve_##Solver, kWarp, 1, SolveParams, solve_one<Solver>)

MTLFAST_SOLVERS(MTLFAST_SOLVE)

}  // namespace mtlfast
#endif
