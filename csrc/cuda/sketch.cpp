#include <bit>

#include "kernels.h"
#include "table.h"

namespace mtlfast::cuda {

static_assert(int{kSketchFloat} == kFloat32 && int{kSketchDouble} == kFloat64);
static_assert(int{kSketchBFloat16} == kBFloat16 && int{kSketchFloat16} == kFloat16);
static_assert(int{kSketchTypes} == kNumElementTypes);

void sketch(const Plan& plan, float* sketch, int64_t num_buckets, double* norm, int64_t first,
            uint64_t key) {
  constexpr int kMaxColumns = 1 << 30;  // of a chunk: nothing is dealt out by chunks
  const Place place(plan.device);
  std::vector<void*> codes;
  for (int64_t t = 0; t < plan.num_tensors; ++t)
    codes.push_back(
        reinterpret_cast<void*>(kSketchTypes * (first + plan.offsets[t]) + plan.types[t]));
  const TableBytes& table = make_table(plan, kNumElementTypes, place, {&codes}, kMaxColumns);
  at::Tensor partials;
  const auto fill = [&](auto& params, int64_t blocks) {
    partials = place.empty(blocks, at::kDouble);
    params.sums = {partials.mutable_data_ptr<double>(), place.ticket()};
    params.sketch = sketch;
    params.norm = norm;
    params.key = key;
    params.log_buckets = std::countr_zero(static_cast<uint64_t>(num_buckets));
  };
  launch_with_table<SketchParams>(place, "mtlfast_sketch", kSketchThreads, table, fill, 0, 1,
                                  num_buckets / kSketchThreads);
}

}  // namespace mtlfast::cuda
