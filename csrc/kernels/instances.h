// Every kernel by name, in groups that are compiled by themselves.
//
// Names: mtlfast_<what>[_<element type>][_k<rows>]_<s or l, for small or large parameters>.
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

#define MTLFAST_GRAMIAN(type, T, Sum, rows)                                            \
  MTLFAST_KERNEL(mtlfast_gramian_##type##_k##rows##_s, gramian_threads(rows),          \
                 gramian_blocks(rows, sizeof(Sum) == 8), GramianParams<kSmallPayload>, \
                 (gramian<T, Sum, rows>))                                              \
  MTLFAST_KERNEL(mtlfast_gramian_##type##_k##rows##_l, gramian_threads(rows),          \
                 gramian_blocks(rows, sizeof(Sum) == 8), GramianParams<kLargePayload>, \
                 (gramian<T, Sum, rows>))
// An x stands for float64 sums of narrower elements.
#define MTLFAST_GRAMIANS(rows)                 \
  MTLFAST_GRAMIAN(f32, float, float, rows)     \
  MTLFAST_GRAMIAN(bf16, BFloat16, float, rows) \
  MTLFAST_GRAMIAN(f16, Float16, float, rows)
#define MTLFAST_EXACT_GRAMIANS(rows)             \
  MTLFAST_GRAMIAN(f32x, float, double, rows)     \
  MTLFAST_GRAMIAN(f64, double, double, rows)     \
  MTLFAST_GRAMIAN(bf16x, BFloat16, double, rows) \
  MTLFAST_GRAMIAN(f16x, Float16, double, rows)

MTLFAST_GRAMIANS(2)
MTLFAST_GRAMIANS(3)
MTLFAST_GRAMIANS(4)
MTLFAST_GRAMIANS(6)
MTLFAST_GRAMIANS(8)
MTLFAST_GRAMIANS(12)
// In float64 the triangle of more than 8 rows does not fit the registers.
MTLFAST_EXACT_GRAMIANS(2)
MTLFAST_EXACT_GRAMIANS(3)
MTLFAST_EXACT_GRAMIANS(4)
MTLFAST_EXACT_GRAMIANS(6)
MTLFAST_EXACT_GRAMIANS(8)

}  // namespace mtlfast
#endif

// Tiles of Gramians, in groups of their own because they take long to compile.
#define MTLFAST_TRIANGLE(type, T, Sum, groups, rows, blocks)                       \
  MTLFAST_KERNEL(mtlfast_gramian_##type##_k##rows##_s, kTileThreads, blocks,       \
                 GramianParams<kSmallPayload>, (gramian_triangle<T, Sum, groups>)) \
  MTLFAST_KERNEL(mtlfast_gramian_##type##_k##rows##_l, kTileThreads, blocks,       \
                 GramianParams<kLargePayload>, (gramian_triangle<T, Sum, groups>))
#define MTLFAST_PAIRS(type, T, Sum, blocks)                              \
  MTLFAST_KERNEL(mtlfast_gramian_##type##_pairs_s, kTileThreads, blocks, \
                 GramianParams<kSmallPayload>, (gramian_pairs<T, Sum>))  \
  MTLFAST_KERNEL(mtlfast_gramian_##type##_pairs_l, kTileThreads, blocks, \
                 GramianParams<kLargePayload>, (gramian_pairs<T, Sum>))

// The last number: how many blocks' registers are to fit on a multiprocessor.
#define MTLFAST_TILES(type, T, k16, k24, k32, k40, k48, k64, pairs) \
  MTLFAST_TRIANGLE(type, T, float, 2, 16, k16)                      \
  MTLFAST_TRIANGLE(type, T, float, 3, 24, k24)                      \
  MTLFAST_TRIANGLE(type, T, float, 4, 32, k32)                      \
  MTLFAST_TRIANGLE(type, T, float, 5, 40, k40)                      \
  MTLFAST_TRIANGLE(type, T, float, 6, 48, k48)                      \
  MTLFAST_TRIANGLE(type, T, float, 8, 64, k64)                      \
  MTLFAST_PAIRS(type, T, float, pairs)
#define MTLFAST_EXACT_TILES(type, T)          \
  MTLFAST_TRIANGLE(type, T, double, 2, 16, 4) \
  MTLFAST_TRIANGLE(type, T, double, 3, 24, 3) \
  MTLFAST_TRIANGLE(type, T, double, 4, 32, 3) \
  MTLFAST_TRIANGLE(type, T, double, 5, 40, 2) \
  MTLFAST_TRIANGLE(type, T, double, 6, 48, 2) \
  MTLFAST_TRIANGLE(type, T, double, 8, 64, 2) \
  MTLFAST_PAIRS(type, T, double, 2)

#if defined(MTLFAST_GROUP_TILES)
#include "gramian_tiles.h"

namespace mtlfast {

MTLFAST_TILES(f32, float, 4, 3, 3, 3, 2, 2, 2)

}  // namespace mtlfast
#endif

#if defined(MTLFAST_GROUP_TILES_16)
#include "gramian_tiles.h"

namespace mtlfast {

MTLFAST_TILES(bf16, BFloat16, 5, 4, 4, 3, 3, 2, 2)
MTLFAST_TILES(f16, Float16, 5, 4, 4, 3, 2, 2, 2)

}  // namespace mtlfast
#endif

#if defined(MTLFAST_GROUP_TILES_EXACT)
#include "gramian_tiles.h"

namespace mtlfast {

MTLFAST_EXACT_TILES(f32x, float)
MTLFAST_EXACT_TILES(f64, double)

}  // namespace mtlfast
#endif

#if defined(MTLFAST_GROUP_TILES_EXACT_16)
#include "gramian_tiles.h"

namespace mtlfast {

MTLFAST_EXACT_TILES(bf16x, BFloat16)
MTLFAST_EXACT_TILES(f16x, Float16)

}  // namespace mtlfast
#endif

#if defined(MTLFAST_GROUP_COMBINE)
#include "combine.h"

namespace mtlfast {

#define MTLFAST_COMBINE(type, T, unused)                                                       \
  MTLFAST_KERNEL(mtlfast_combine_##type##_s, kCombineThreads, 3, CombineParams<kSmallPayload>, \
                 (combine<T>))                                                                 \
  MTLFAST_KERNEL(mtlfast_combine_##type##_l, kCombineThreads, 3, CombineParams<kLargePayload>, \
                 (combine<T>))

MTLFAST_FOR_TYPES(MTLFAST_COMBINE, )
MTLFAST_KERNEL(mtlfast_upload, 256, 1, UploadParams, upload)

}  // namespace mtlfast
#endif

#if defined(MTLFAST_GROUP_COLUMNS)
#include "excess.h"
#include "graddrop.h"
#include "trimmed_mean.h"

namespace mtlfast {

// `blocks` as many as leave every instance enough registers, which ptxas counts out differently for every GPU.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
constexpr int kGradDropBlocks = 2;
#else
constexpr int kGradDropBlocks = 3;
#endif
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 1000
constexpr int kExcessBlocks = 3;
#else
constexpr int kExcessBlocks = 4;
#endif
#define MTLFAST_COLUMNS(name, Params, blocks, ...)                                                 \
  MTLFAST_KERNEL(mtlfast_##name##_s, kColumnThreads, blocks, Params<kSmallPayload>, (__VA_ARGS__)) \
  MTLFAST_KERNEL(mtlfast_##name##_l, kColumnThreads, blocks, Params<kLargePayload>, (__VA_ARGS__))

#define MTLFAST_GRADDROP(type, T, unused)                                               \
  MTLFAST_COLUMNS(graddrop_##type, GradDropParams, kGradDropBlocks, graddrop<T, false>) \
  MTLFAST_COLUMNS(leaky_graddrop_##type, GradDropParams, 2, graddrop<T, true>)
#define MTLFAST_TRIM(type, T, unused)                                     \
  MTLFAST_COLUMNS(trim0_##type, TrimmedMeanParams, 3, trimmed_mean<T, 0>) \
  MTLFAST_COLUMNS(trim1_##type, TrimmedMeanParams, 3, trimmed_mean<T, 1>) \
  MTLFAST_COLUMNS(trim2_##type, TrimmedMeanParams, 2, trimmed_mean<T, 2>) \
  MTLFAST_COLUMNS(trim_any_##type, TrimmedMeanParams, 4, trimmed_mean_of_any<T>)
#define MTLFAST_EXCESS(type, T, unused) \
  MTLFAST_COLUMNS(excess_##type, ExcessParams, kExcessBlocks, excess<T>)

MTLFAST_FOR_TYPES(MTLFAST_GRADDROP, )
MTLFAST_FOR_TYPES(MTLFAST_TRIM, )
MTLFAST_FOR_TYPES(MTLFAST_EXCESS, )
MTLFAST_KERNEL(mtlfast_advance, kWarp, 1, AdvanceParams, advance)

}  // namespace mtlfast
#endif

#if defined(MTLFAST_GROUP_SKETCH)
#include "sketch.h"

namespace mtlfast {

MTLFAST_KERNEL(mtlfast_sketch_s, kSketchThreads, 8, SketchParams<kSmallPayload>, sketch)
MTLFAST_KERNEL(mtlfast_sketch_l, kSketchThreads, 8, SketchParams<kLargePayload>, sketch)

}  // namespace mtlfast
#endif

#if defined(MTLFAST_GROUP_STEP)
#include "fused_step.h"

namespace mtlfast {

#define MTLFAST_STEP(type, T, name, rule)                                                          \
  MTLFAST_KERNEL(mtlfast_step_##name##_##type##_s, kUpdateThreads, 2, UpdateParams<kSmallPayload>, \
                 (fused_step<T, rule>))                                                            \
  MTLFAST_KERNEL(mtlfast_step_##name##_##type##_l, kUpdateThreads, 2, UpdateParams<kLargePayload>, \
                 (fused_step<T, rule>))

MTLFAST_FOR_TYPES(MTLFAST_STEP, sgd, kSgd)
MTLFAST_FOR_TYPES(MTLFAST_STEP, momentum, kSgdMomentum)
MTLFAST_FOR_TYPES(MTLFAST_STEP, adam, kAdam)
MTLFAST_FOR_TYPES(MTLFAST_STEP, amsgrad, kAdamMax)

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
