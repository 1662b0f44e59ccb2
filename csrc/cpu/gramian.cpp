#include <ATen/Parallel.h>

#include <algorithm>
#include <vector>

#include "../plan.h"
#include "scratch.h"

namespace mtlfast::cpu {
namespace {

int64_t num_pairs(int64_t rows) { return rows * (rows + 1) / 2; }

// Adds one group's share to `packed`, the upper triangle row by row.
void add_group(const Plan& plan, const Groups& groups, int64_t group, double* packed) {
  const KernelTable& table = kernels();
  const int num_tasks = plan.num_tasks;
  const int64_t pairs = num_pairs(num_tasks);
  std::vector<const void*> present(static_cast<size_t>(num_tasks));
  std::vector<int> task(static_cast<size_t>(num_tasks));
  const int64_t kernel_scratch = (table.gramian_scratch(num_tasks) + 7) / 8 * 8;
  double* scratch = thread_scratch(kernel_scratch + pairs);

  for_each_range(plan, group, groups.count, groups.align,
                 [&](int64_t t, int64_t begin, int64_t end) {
                   const void* const* rows = plan.rows.data() + t * num_tasks;
                   int count = 0;
                   for (int k = 0; k < num_tasks; ++k)
                     if (rows[k] != nullptr) {
                       present[count] = rows[k];
                       task[count++] = k;
                     }
                   const auto kernel = table.gramian[plan.types[t]];
                   if (count == num_tasks)
                     return kernel(present.data(), count, begin, end, packed, scratch);

                   double* part = scratch + kernel_scratch;
                   std::fill(part, part + num_pairs(count), 0.0);
                   kernel(present.data(), count, begin, end, part, scratch);
                   for (int64_t a = 0; a < count; ++a)
                     for (int64_t b = a; b < count; ++b, ++part) {
                       const int64_t i = task[a];
                       packed[i * num_tasks - i * (i - 1) / 2 + (task[b] - i)] += *part;
                     }
                 });
}

}  // namespace

void gramian(const Plan& plan, double* out) {
  const int64_t num_tasks = plan.num_tasks;
  const int64_t pairs = num_pairs(num_tasks);
  // Every group has partial sums of its own, added in order at the end; their memory is bounded for large K.
  constexpr int64_t kMaxPartialDoubles = 1 << 22;
  const Groups groups =
      make_groups(plan, std::clamp(kMaxPartialDoubles / pairs, int64_t{1}, int64_t{256}));
  std::vector<double> partial(static_cast<size_t>(groups.count * pairs), 0.0);
  at::parallel_for(0, groups.count, 1, [&](int64_t first, int64_t last) {
    for (int64_t group = first; group < last; ++group)
      add_group(plan, groups, group, partial.data() + group * pairs);
  });
  for (int64_t group = 1; group < groups.count; ++group)
    for (int64_t pair = 0; pair < pairs; ++pair) partial[pair] += partial[group * pairs + pair];

  const double* sum = partial.data();
  for (int64_t i = 0; i < num_tasks; ++i)
    for (int64_t j = i; j < num_tasks; ++j, ++sum)
      out[i * num_tasks + j] = out[j * num_tasks + i] = *sum;
}

}  // namespace mtlfast::cpu
