#include <ATen/Parallel.h>

#include <vector>

#include "../plan.h"

namespace mtlfast::cpu {

void update(const Plan& plan, const double* weights, UpdateRule rule,
            const std::vector<UpdateFactors<double>>& factors, const std::vector<void*>& params,
            const std::vector<void*>& states) {
  const KernelTable& table = kernels();
  const Groups groups = make_groups(plan, 1024);
  at::parallel_for(0, groups.count, 1, [&](int64_t first, int64_t last) {
    std::vector<const void*> present(static_cast<size_t>(plan.num_tasks));
    std::vector<double> weight(static_cast<size_t>(plan.num_tasks));
    for (int64_t group = first; group < last; ++group)
      for_each_range(
          plan, group, groups.count, groups.align, [&](int64_t t, int64_t begin, int64_t end) {
            const void* const* rows = plan.rows.data() + t * plan.num_tasks;
            int count = 0;
            for (int k = 0; k < plan.num_tasks; ++k)
              if (rows[k] != nullptr && weights[k] != 0.0) {  // as in combine()
                present[count] = rows[k];
                weight[count++] = weights[k];
              }
            table.update[rule][plan.types[t]](factors[t], present.data(), weight.data(), count,
                                              params[t], states.data() + t * kMaxUpdateStates,
                                              begin, end);
          });
  });
}

}  // namespace mtlfast::cpu
