#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <initializer_list>

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

// The smallest of some numbers of rows that holds the tasks, or 0.
int smallest(std::initializer_list<int> sizes, int num_tasks) {
  for (int rows : sizes)
    if (num_tasks <= rows) return rows;
  return 0;
}

// Which kernel of csrc/kernels/instances.h a Gramian takes, and what goes with it.
struct Choice {
  std::string name;
  int threads;
  int max_columns;  // of a chunk
  int sums;
  int shared_bytes = 0;
  int64_t teams = 0;  // 0: blocks that are no team
};

Choice choose(int num_tasks, ElementType type, bool in_double, const Place& place) {
  const std::string name = std::string("mtlfast_gramian_") + type_name(type) +
                           (in_double && type != kFloat64 ? "x" : "");
  const int in_registers =
      in_double ? smallest({2, 3, 4, 6, 8}, num_tasks) : smallest({2, 3, 4, 6, 8, 12}, num_tasks);
  if (in_registers != 0) {
    const int threads = gramian_threads(in_registers);
    return {name + "_k" + std::to_string(in_registers), threads, kSumsPerLane * threads,
            in_registers * (in_registers + 1) / 2};
  }
  const int bytes = type == kFloat64 ? 8 : (type == kFloat32 ? 4 : 2);
  Choice choice{name + "_pairs",
                kTileThreads,
                kStepsPerLane * tile_columns(bytes) * (kTileThreads / 32),
                pair_sums(),
                tile_shared_bytes(pair_sums()),
                pairs_of(num_tasks)};
  const int rows = smallest({16, 24, 32, 40, 48, 64}, num_tasks);
  const int sums = triangle_sums(rows / 8, tile_height(in_double));
  // The largest triangle takes more shared memory than old GPUs have.
  if (rows != 0 && tile_shared_bytes(sums) <= place.max_shared_bytes()) {
    choice.name = name + "_k" + std::to_string(rows);
    choice.sums = sums;
    choice.shared_bytes = tile_shared_bytes(sums);
    choice.teams = 1;
  }
  return choice;
}

void add_type(const Plan& plan, ElementType type, const Place& place, double* out,
              bool accumulate) {
  const Choice choice = choose(plan.num_tasks, type, adds_in_double(plan, type, place), place);
  const int64_t teams = std::max<int64_t>(1, choice.teams);
  const TableBytes& table = make_table(plan, type, place, {}, choice.max_columns);
  at::Tensor partials;
  const auto fill = [&](auto& params, int64_t blocks) {
    int64_t slots = blocks;
    int64_t tickets = 1;
    if (choice.teams != 0) {
      slots = teams * team_slots(blocks / teams);
      tickets = teams * team_tickets(blocks / teams);
    }
    partials = place.empty(slots * choice.sums, at::kDouble);
    params.sums = {partials.mutable_data_ptr<double>(), place.ticket(tickets)};
    params.out = out;
    params.num_tasks = plan.num_tasks;
    params.accumulate = accumulate;
  };
  launch_with_table<GramianParams>(place, choice.name, choice.threads, table, fill,
                                   choice.shared_bytes, teams);
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
