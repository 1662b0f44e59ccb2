// The methods that look at every column by itself: GradDrop, the trimmed mean, and ExcessMTL's sums.
#include <algorithm>

#include "kernels.h"
#include "table.h"

namespace mtlfast::cuda {
namespace {

constexpr int kMaxColumns = 16384;  // of a chunk

using Pointers = std::vector<void*>;

// Calls launch(name of the kernel, table) for the tensors of every element type there is.
template <class Launch>
void for_each_type(const Plan& plan, const Place& place, const std::string& kernel,
                   const std::vector<const Pointers*>& more, Launch launch) {
  for (int type = 0; type < kNumElementTypes; ++type) {
    const TableBytes& table =
        make_table(plan, static_cast<ElementType>(type), place, more, kMaxColumns);
    if (table.num_chunks > 0)
      launch("mtlfast_" + kernel + "_" + type_name(static_cast<ElementType>(type)), table);
  }
}

}  // namespace

void graddrop(const Plan& plan, const double* leak, const std::vector<const double*>& uniform,
              const int64_t* rng, const std::vector<void*>& outs, bool accumulate) {
  const Place place(plan.device);
  Pointers chances;
  for (int64_t t = 0; t < plan.num_tensors; ++t)
    chances.push_back(uniform.empty() ? reinterpret_cast<void*>(16 * plan.offsets[t])
                                      : const_cast<double*>(uniform[t]));
  for_each_type(plan, place, leak == nullptr ? "graddrop" : "leaky_graddrop", {&outs, &chances},
                [&](const std::string& name, const TableBytes& table) {
                  launch_with_table<GradDropParams>(
                      place, name, kColumnThreads, table, [&](auto& params, int64_t) {
                        params.leak = leak;
                        params.rng =
                            uniform.empty() ? reinterpret_cast<const int64*>(rng) : nullptr;
                        params.num_tasks = plan.num_tasks;
                        params.accumulate = accumulate;
                      });
                });
}

// A launch of its own: a call may need several that draw from the same counter.
void advance(const at::Device& device, int64_t* rng) {
  const Place place(device);
  AdvanceParams params = {reinterpret_cast<int64*>(rng)};
  constexpr int kThreads = 32;
  place.launch(place.kernel("mtlfast_advance", kThreads), 1, kThreads, params);
}

void trimmed_mean(const Plan& plan, int trim, const std::vector<void*>& outs, bool accumulate) {
  const Place place(plan.device);
  const std::string kernel =
      trim <= kListedTrims ? "trim" + std::to_string(trim) : std::string("trim_any");
  for_each_type(plan, place, kernel, {&outs},
                [&](const std::string& name, const TableBytes& table) {
                  launch_with_table<TrimmedMeanParams>(place, name, kColumnThreads, table,
                                                       [&](auto& params, int64_t) {
                                                         params.num_tasks = plan.num_tasks;
                                                         params.trim = trim;
                                                         params.accumulate = accumulate;
                                                       });
                });
}

void excess(const Plan& plan, const std::vector<const void*>& old, const std::vector<void*>& sums,
            double* out) {
  const Place place(plan.device);
  const int num_tasks = plan.num_tasks;
  // The kernel's table has a list for each task, the plan one for each tensor.
  std::vector<Pointers> lists(2 * static_cast<size_t>(num_tasks),
                              Pointers(static_cast<size_t>(plan.num_tensors)));
  std::vector<const Pointers*> more;
  for (const Pointers& list : lists) more.push_back(&list);
  for (int64_t t = 0; t < plan.num_tensors; ++t) {
    for (int k = 0; k < num_tasks; ++k) {
      lists[k][t] = const_cast<void*>(old[t * num_tasks + k]);
      lists[num_tasks + k][t] = sums[t * num_tasks + k];
    }
  }
  bool any = false;
  for_each_type(plan, place, "excess", more, [&](const std::string& name, const TableBytes& table) {
    for (int first = 0; first < num_tasks; first += kExcessRows) {
      const int rows = std::min(kExcessRows, num_tasks - first);
      at::Tensor partials;
      launch_with_table<ExcessParams>(
          place, name, kColumnThreads, table, [&](auto& params, int64_t blocks) {
            partials = place.empty(blocks * rows, at::kDouble);
            params.sums = {partials.mutable_data_ptr<double>(), place.ticket()};
            params.out = out;
            params.num_tasks = num_tasks;
            params.first_row = first;
            params.num_rows = rows;
            params.accumulate = any;
          });
    }
    any = true;
  });
}

}  // namespace mtlfast::cuda
