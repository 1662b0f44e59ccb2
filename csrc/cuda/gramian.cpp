#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>

#include <stdexcept>

#include "kernels.h"
#include "table.h"

namespace mtlfast::cuda {
namespace {

// Float32 products that one lane adds before they move on to float64.
constexpr int kSumsPerLane = 64;

Sums forced = Sums::kAuto;

// Products that float64 sums may cost: about 3 us of a GPU with half as many float64 as float32 units, where they hide
// behind the launch; fewer of one that has only a few.
constexpr int64_t kExactProducts = 50'000'000;
constexpr int64_t kExactProductsWhereSlow = 2'000'000;
constexpr int kFastRatio = 4;  // float32 to float64 speed

bool adds_in_double(const Plan& plan, ElementType type, const Place& place) {
  if (type == kFloat64) return true;
  if (forced != Sums::kAuto) return forced == Sums::kFloat64;
  const int64_t products = plan.num_columns * plan.num_tasks * (plan.num_tasks + 1) / 2;
  return products <=
         (place.float_to_double_speed() <= kFastRatio ? kExactProducts : kExactProductsWhereSlow);
}

// The smallest triangle of csrc/kernels/instances.h that holds the tasks.
int triangle_rows(int num_tasks) {
  for (int rows : {2, 3, 4, 6, 8, 12})
    if (num_tasks <= rows) return rows;
  return 0;
}

void add_type(const Plan& plan, ElementType type, const Place& place, double* out,
              bool accumulate) {
  const int rows = triangle_rows(plan.num_tasks);
  const bool exact = adds_in_double(plan, type, place);
  if (rows == 0 || (exact && rows > 8))
    throw std::runtime_error("task_grads: too many tasks for this kernel");
  const int threads = gramian_threads(rows);
  const TableBytes& table = make_table(plan, type, place, {}, kSumsPerLane * threads);
  const std::string name = std::string("mtlfast_gramian_") + type_name(type) +
                           (exact && type != kFloat64 ? "x_k" : "_k") + std::to_string(rows);
  at::Tensor partials;
  launch_with_table<GramianParams>(place, name, threads, table, [&](auto& params, int64_t blocks) {
    partials = place.empty(blocks * rows * (rows + 1) / 2, at::kDouble);
    params.sums = {partials.mutable_data_ptr<double>(), place.ticket()};
    params.out = out;
    params.num_tasks = plan.num_tasks;
    params.accumulate = accumulate;
  });
}

}  // namespace

void force_sums(Sums sums) { forced = sums; }

at::Tensor gramian(const Plan& plan) {
  const Place place(plan.device);
  const auto options = at::TensorOptions().dtype(at::kDouble).device(plan.device);
  bool present[kNumElementTypes] = {};
  for (int64_t t = 0; t < plan.num_tensors; ++t)
    if (plan.offsets[t + 1] > plan.offsets[t]) present[plan.types[t]] = true;
  at::Tensor out;
  for (int type = 0; type < kNumElementTypes; ++type) {
    if (!present[type]) continue;
    const bool accumulate = out.defined();
    if (!accumulate) out = at::empty({plan.num_tasks, plan.num_tasks}, options);
    add_type(plan, static_cast<ElementType>(type), place, out.mutable_data_ptr<double>(),
             accumulate);
  }
  return out.defined() ? out : at::zeros({plan.num_tasks, plan.num_tasks}, options);
}

}  // namespace mtlfast::cuda
