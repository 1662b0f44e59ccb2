// The CPU kernels for one instruction set; compiled once per set with MTLFAST_ISA_<name> defined.
#include "combine_kernel.h"
#include "excess_kernel.h"
#include "graddrop_kernel.h"
#include "gramian_kernel.h"
#include "kernel_table.h"
#include "sketch_kernel.h"
#include "trimmed_mean_kernel.h"
#include "update_kernel.h"

namespace mtlfast {

#define MTLFAST_UPDATE(rule)                                                         \
  {update_rows<float, rule>, update_rows<double, rule>, update_rows<bfloat16, rule>, \
   update_rows<float16, rule>}

#if defined(MTLFAST_ISA_avx512)
#define MTLFAST_TABLE avx512_kernels
#define MTLFAST_ISA_NAME "avx512"
#elif defined(MTLFAST_ISA_avx2)
#define MTLFAST_TABLE avx2_kernels
#define MTLFAST_ISA_NAME "avx2"
#else
#define MTLFAST_TABLE baseline_kernels
#define MTLFAST_ISA_NAME "baseline"
#endif

const KernelTable& MTLFAST_TABLE() {
  static const KernelTable table = {
      MTLFAST_ISA_NAME,
      {gramian_rows<float>, gramian_rows<double>, gramian_rows<bfloat16>, gramian_rows<float16>},
      gramian_scratch,
      {combine_rows<float>, combine_rows<double>, combine_rows<bfloat16>, combine_rows<float16>},
      {drop_rows<float>, drop_rows<double>, drop_rows<bfloat16>, drop_rows<float16>},
      {trim_rows<float>, trim_rows<double>, trim_rows<bfloat16>, trim_rows<float16>},
      trim_scratch,
      {excess_row<float>, excess_row<double>, excess_row<bfloat16>, excess_row<float16>},
      {sketch_range<float>, sketch_range<double>, sketch_range<bfloat16>, sketch_range<float16>},
      {MTLFAST_UPDATE(kSgd), MTLFAST_UPDATE(kSgdMomentum), MTLFAST_UPDATE(kAdam),
       MTLFAST_UPDATE(kAdamMax)},
  };
  return table;
}

}  // namespace mtlfast
