#include <ATen/Parallel.h>

#include <vector>

#include "../plan.h"

namespace mtlfast::cpu {

void combine(const Plan& plan, const double* weights, const std::vector<void*>& outs,
             bool accumulate) {
  const bool stream = plan.is_beyond_cache();
  const KernelTable& table = kernels();
  const Groups groups = make_groups(plan, 1024);
  at::parallel_for(0, groups.count, 1, [&](int64_t first, int64_t last) {
    std::vector<const void*> present(static_cast<size_t>(plan.num_tasks) + 1);
    std::vector<double> weight(static_cast<size_t>(plan.num_tasks) + 1);
    for (int64_t group = first; group < last; ++group)
      for_each_range(plan, group, groups.count, groups.align,
                     [&](int64_t t, int64_t begin, int64_t end) {
                       if (outs[t] == nullptr) return;
                       const void* const* rows = plan.rows.data() + t * plan.num_tasks;
                       int count = 0;
                       for (int k = 0; k < plan.num_tasks; ++k)
                         // A weight of exactly zero drops the task, even one whose gradient is not finite.
                         if (rows[k] != nullptr && weights[k] != 0.0) {
                           present[count] = rows[k];
                           weight[count++] = weights[k];
                         }
                       if (accumulate) {
                         present[count] = outs[t];
                         weight[count++] = 1.0;
                       }
                       table.combine[plan.types[t]](present.data(), weight.data(), count, outs[t],
                                                    begin, end, stream);
                     });
  });
}

}  // namespace mtlfast::cpu
