// Folding gradients into a sketch: every thread has buckets of its own.
#include <ATen/Parallel.h>

#include <algorithm>
#include <vector>

#include "../plan.h"

namespace mtlfast::cpu {
namespace {

// Buckets whose elements' squares are added up together; threads take some blocks each. A function of the sketch's
// length alone, so that the sums do not depend on the number of threads.
int64_t block_length(int64_t num_buckets) {
  return std::clamp<int64_t>(num_buckets / 16, 512, 4096);
}

constexpr int64_t kMinElements = 32768;  // a thread's share that is worth the fork

}  // namespace

void sketch(const Plan& plan, float* sketch, int64_t num_buckets, double* norm, int64_t first,
            uint64_t key) {
  const KernelTable& table = kernels();
  const int64_t length = block_length(num_buckets);
  const int64_t blocks = num_buckets / length;
  std::vector<double> partial(static_cast<size_t>(blocks), 0.0);
  const int64_t grain = std::clamp<int64_t>(
      blocks * kMinElements / std::max<int64_t>(plan.num_columns, 1), 1, blocks);
  // A thread walks through memory in order: its elements of a turn around the sketch follow one another.
  at::parallel_for(0, blocks, grain, [&](int64_t from, int64_t to) {
    for (int64_t t = 0; t < plan.num_tensors; ++t)
      table.sketch[plan.types[t]](plan.rows[t], plan.offsets[t + 1] - plan.offsets[t],
                                  first + plan.offsets[t], key, sketch, num_buckets, from * length,
                                  to * length, length, partial.data());
  });
  double total = 0.0;
  for (const double part : partial) total += part;
  *norm += total;
}

}  // namespace mtlfast::cpu
