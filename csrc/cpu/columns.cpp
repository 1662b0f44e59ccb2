// The methods that look at every column by itself: GradDrop, the trimmed mean, and ExcessMTL's sums.
#include <ATen/Parallel.h>

#include <algorithm>
#include <vector>

#include "../plan.h"
#include "../solvers/random.h"
#include "scratch.h"

namespace mtlfast::cpu {
namespace {

constexpr int64_t kMaxGroups = 1024;

// Calls visit(t, begin, end) for the columns of every tensor that has a target, on all threads.
template <class Visit>
void for_each_output(const Plan& plan, const std::vector<void*>& outs, Visit visit) {
  const Groups groups = make_groups(plan, kMaxGroups);
  at::parallel_for(0, groups.count, 1, [&](int64_t first, int64_t last) {
    for (int64_t group = first; group < last; ++group)
      for_each_range(plan, group, groups.count, groups.align,
                     [&](int64_t t, int64_t begin, int64_t end) {
                       if (outs[t] != nullptr) visit(t, begin, end);
                     });
  });
}

// The tasks that reach a tensor.
struct Present {
  std::vector<const void*> rows;
  std::vector<double> leak;
};

const Present& present_rows(const Plan& plan, int64_t t, const double* leak) {
  thread_local Present present;
  present.rows.clear();
  present.leak.clear();
  for (int k = 0; k < plan.num_tasks; ++k) {
    const void* row = plan.rows[t * plan.num_tasks + k];
    if (row == nullptr) continue;
    present.rows.push_back(row);
    if (leak != nullptr) present.leak.push_back(leak[k]);
  }
  return present;
}

}  // namespace

void graddrop(const Plan& plan, const double* leak, const std::vector<const double*>& uniform,
              const int64_t* rng, const std::vector<void*>& outs, bool accumulate) {
  constexpr int64_t kBlock = 1 << 20;  // columns that share two keys
  static_assert(sizeof(int64) == sizeof(int64_t));
  const bool stream = plan.is_beyond_cache();
  const KernelTable& table = kernels();
  for_each_output(plan, outs, [&](int64_t t, int64_t begin, int64_t end) {
    const Present& present = present_rows(plan, t, leak);
    DropArgs args = {};
    args.leak = leak == nullptr ? nullptr : present.leak.data();
    args.uniform = uniform.empty() ? nullptr : uniform[t];
    while (begin < end) {
      const int64_t block = (plan.offsets[t] + begin) / kBlock;
      const int64_t stop = std::min(end, (block + 1) * kBlock - plan.offsets[t]);
      if (uniform.empty()) {
        const uint64 bits =
            random_bits(reinterpret_cast<const int64*>(rng), static_cast<int>(block), 0);
        args.keys[0] = static_cast<uint32_t>(bits);
        args.keys[1] = static_cast<uint32_t>(bits >> 32);
        args.first_position = plan.offsets[t] - block * kBlock;
      }
      table.graddrop[plan.types[t]](present.rows.data(), static_cast<int>(present.rows.size()),
                                    args, outs[t], begin, stop, accumulate, stream);
      begin = stop;
    }
  });
}

void trimmed_mean(const Plan& plan, int trim, const std::vector<void*>& outs, bool accumulate) {
  const bool stream = plan.is_beyond_cache();
  const KernelTable& table = kernels();
  const int64_t scratch = table.trimmed_mean_scratch(trim);
  for_each_output(plan, outs, [&](int64_t t, int64_t begin, int64_t end) {
    table.trimmed_mean[plan.types[t]](plan.rows.data() + t * plan.num_tasks, plan.num_tasks, trim,
                                      outs[t], begin, end, accumulate, stream,
                                      thread_scratch(scratch));
  });
}

void excess(const Plan& plan, const std::vector<const void*>& old, const std::vector<void*>& sums,
            double* out) {
  const int64_t num_tasks = plan.num_tasks;
  const bool stream = plan.num_columns * num_tasks > Plan::kStreamColumns;
  const KernelTable& table = kernels();
  const Groups groups = make_groups(plan, kMaxGroups);
  // Every group has sums of its own, added in order at the end.
  std::vector<double> partial(static_cast<size_t>(groups.count * num_tasks), 0.0);
  at::parallel_for(0, groups.count, 1, [&](int64_t first, int64_t last) {
    for (int64_t group = first; group < last; ++group)
      for_each_range(plan, group, groups.count, groups.align,
                     [&](int64_t t, int64_t begin, int64_t end) {
                       for (int64_t k = 0; k < num_tasks; ++k) {
                         const int64_t at = t * num_tasks + k;
                         if (plan.rows[at] != nullptr)
                           partial[group * num_tasks + k] += table.excess[plan.types[t]](
                               plan.rows[at], old[at], sums[at], begin, end, stream);
                       }
                     });
  });
  std::fill(out, out + num_tasks, 0.0);
  for (int64_t group = 0; group < groups.count; ++group)
    for (int64_t k = 0; k < num_tasks; ++k) out[k] += partial[group * num_tasks + k];
}

}  // namespace mtlfast::cpu
