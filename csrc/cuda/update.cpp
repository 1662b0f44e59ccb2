#include <algorithm>
#include <string>

#include "kernels.h"
#include "table.h"

namespace mtlfast::cuda {
namespace {

const char* rule_name(UpdateRule rule) {
  switch (rule) {
    case kSgd: return "sgd";
    case kSgdMomentum: return "momentum";
    case kAdam: return "adam";
    default: return "amsgrad";
  }
}

}  // namespace

void update(const Plan& plan, const double* weights, const Update& update,
            const std::vector<const std::vector<void*>*>& targets, const StepCounts& steps) {
  constexpr int kMaxColumns = 16384;
  const Place place(plan.device);
  // Counts on the host: one launch for each that occurs, which is one as a rule.
  std::vector<double> counts = steps.counts;
  std::sort(counts.begin(), counts.end());
  counts.erase(std::unique(counts.begin(), counts.end()), counts.end());
  if (counts.empty()) counts.push_back(0.0);
  std::vector<void*> params = *targets[0];
  std::vector<const std::vector<void*>*> pointers = targets;
  pointers[0] = &params;
  const bool steps_here = !steps.at.empty();
  if (steps_here) pointers.push_back(&steps.at);
  for (const double count : counts) {
    if (!steps.counts.empty())
      for (size_t t = 0; t < params.size(); ++t)
        params[t] = steps.counts[t] == count ? (*targets[0])[t] : nullptr;
    for (int type = 0; type < kNumElementTypes; ++type) {
      bool any = false;
      for (size_t t = 0; t < params.size(); ++t)
        any = any || (params[t] != nullptr && plan.types[t] == type);
      if (!any) continue;
      const TableBytes& table =
          make_table(plan, static_cast<ElementType>(type), place, pointers, kMaxColumns);
      if (table.num_chunks == 0) continue;
      const std::string name = std::string("mtlfast_step_") + rule_name(update.rule) + "_" +
                               type_name(static_cast<ElementType>(type));
      launch_with_table<UpdateParams>(place, name, kUpdateThreads, table,
                                      [&](auto& params, int64_t) {
                                        params.weights = weights;
                                        params.update = update;
                                        params.count = count;
                                        params.num_tasks = plan.num_tasks;
                                        params.steps_here = steps_here;
                                        params.wide_steps = steps.wide;
                                      });
    }
  }
}

}  // namespace mtlfast::cuda
