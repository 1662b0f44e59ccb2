// The CPU kernels of one instruction set, as plain function pointers.
//
// isa_kernels.cpp is compiled once per instruction set and fills one table each time; dispatch.cpp picks
// the table at run time. Nothing here may pull in inline library code: a template instantiated inside an
// AVX-512 unit could otherwise be the copy the linker keeps for every CPU.
#pragma once

#include <stdint.h>

#include "../kernels/update.h"

namespace mtlfast {

enum ElementType : int {
  kFloat32 = 0,
  kFloat64 = 1,
  kBFloat16 = 2,
  kFloat16 = 3,
  kNumElementTypes = 4
};

// What GradDrop's kernel needs beside the rows.
struct DropArgs {
  const double* leak;      // one per row; null: nothing leaks
  const double* uniform;   // the chance of each column of the tensor; null: drawn from the keys
  uint32_t keys[2];        // of the block that the columns lie in
  int64_t first_position;  // in that block, of the tensor's first column
};

struct KernelTable {
  const char* isa;

  // packed += upper triangle of R Rᵀ, row by row, over the columns [begin, end).
  // rows: num_rows pointers to elements of the type; scratch: gramian_scratch(num_rows) doubles, 64-byte aligned.
  void (*gramian[kNumElementTypes])(const void* const* rows, int num_rows, int64_t begin,
                                    int64_t end, double* packed, double* scratch);
  int64_t (*gramian_scratch)(int num_rows);

  // out = Σ_k weights[k] · rows[k] over the columns [begin, end), accumulated in float64 and rounded as torch rounds float64.
  // out may be one of the rows. stream: write past the cache.
  void (*combine[kNumElementTypes])(const void* const* rows, const double* weights, int num_rows,
                                    void* out, int64_t begin, int64_t end, bool stream);

  // The kernels that work column by column; at least one row. accumulate: add to what out holds, in float64.
  // out may be one of the rows. stream: write past the cache.

  void (*graddrop[kNumElementTypes])(const void* const* rows, int num_rows, const DropArgs& args,
                                     void* out, int64_t begin, int64_t end, bool accumulate,
                                     bool stream);

  // A null row is one of zeros; num_rows > 2 trim; scratch: trimmed_mean_scratch(trim) doubles, 64-byte aligned.
  void (*trimmed_mean[kNumElementTypes])(const void* const* rows, int num_rows, int trim, void* out,
                                         int64_t begin, int64_t end, bool accumulate, bool stream,
                                         double* scratch);
  int64_t (*trimmed_mean_scratch)(int trim);

  // sums = old + g² (old null: zeros; both float32, for float64 gradients float64) and the sum of g² / sqrt(sums + 1e-7).
  double (*excess[kNumElementTypes])(const void* grad, const void* old, void* sums, int64_t begin,
                                     int64_t end, bool stream);

  // sketch[e mod num_buckets] += ± element, with the sign of signs.h, for the elements e = first, first + 1, ... that fall
  // into the buckets [begin, end); the sum of the squares in each `block` of buckets is added to an entry of norms. All
  // four numbers of buckets are multiples of kSignsPerHash.
  void (*sketch[kNumElementTypes])(const void* grad, int64_t size, int64_t first, uint64_t key,
                                   float* sketch, int64_t num_buckets, int64_t begin, int64_t end,
                                   int64_t block, double* norms);

  // An optimizer's update by the gradient Σ_k weights[k] · rows[k], which is not rounded on the way; num_rows may be 0.
  // states: as many as the rule has.
  void (*update[kNumUpdateRules][kNumElementTypes])(const UpdateFactors<double>& factors,
                                                    const void* const* rows, const double* weights,
                                                    int num_rows, void* param, void* const* states,
                                                    int64_t begin, int64_t end);
};

const KernelTable& avx512_kernels();
const KernelTable& avx2_kernels();
const KernelTable& baseline_kernels();

}  // namespace mtlfast
