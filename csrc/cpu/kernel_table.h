// The CPU kernels of one instruction set, as plain function pointers.
//
// isa_kernels.cpp is compiled once per instruction set and fills one table each time; dispatch.cpp picks
// the table at run time. Nothing here may pull in inline library code: a template instantiated inside an
// AVX-512 unit could otherwise be the copy the linker keeps for every CPU.
#pragma once

#include <stdint.h>

namespace mtlfast {

enum ElementType : int {
  kFloat32 = 0,
  kFloat64 = 1,
  kBFloat16 = 2,
  kFloat16 = 3,
  kNumElementTypes = 4
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
};

const KernelTable& avx512_kernels();
const KernelTable& avx2_kernels();
const KernelTable& baseline_kernels();

}  // namespace mtlfast
