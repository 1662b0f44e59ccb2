#include "kernels.h"
#include "table.h"

namespace mtlfast::cuda {

void combine(const Plan& plan, const double* weights, const std::vector<void*>& outs,
             bool accumulate) {
  constexpr int kMaxColumns = 16384;
  const Place place(plan.device);
  for (int type = 0; type < kNumElementTypes; ++type) {
    const TableBytes& table =
        make_table(plan, static_cast<ElementType>(type), place, {&outs}, kMaxColumns);
    if (table.num_chunks == 0) continue;
    const std::string name =
        std::string("mtlfast_combine_") + type_name(static_cast<ElementType>(type));
    launch_with_table<CombineParams>(place, name, kCombineThreads, table,
                                     [&](auto& params, int64_t) {
                                       params.weights = weights;
                                       params.num_tasks = plan.num_tasks;
                                       params.accumulate = accumulate;
                                     });
  }
}

}  // namespace mtlfast::cuda
