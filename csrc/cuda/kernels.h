// The K x P and K x K operations on a GPU: what csrc/plan.h declares for the CPU.
#pragma once

#include <ATen/core/Tensor.h>

#include <string>
#include <vector>

#include "../plan.h"
#include "../solvers/solver.h"

namespace mtlfast::cuda {

at::Tensor gramian(const Plan& plan);  // [K, K] float64 on the plan's device

// What products are added in: float64 for float64 gradients and for small problems, else float32, of which few at a
// time. For tests the choice can be forced.
enum class Sums { kAuto, kFloat32, kFloat64 };
void force_sums(Sums sums);

void combine(const Plan& plan, const double* weights, const std::vector<void*>& outs,
             bool accumulate);

// As in csrc/plan.h, with leak, chances, rng and `out` in the device's memory; rng does not change.
void graddrop(const Plan& plan, const double* leak, const std::vector<const double*>& uniform,
              const int64_t* rng, const std::vector<void*>& outs, bool accumulate);
// Adds 1 to the counter of rng.
void advance(const at::Device& device, int64_t* rng);
void trimmed_mean(const Plan& plan, int trim, const std::vector<void*>& outs, bool accumulate);
void excess(const Plan& plan, const std::vector<const void*>& old, const std::vector<void*>& sums,
            double* out);

// As in csrc/plan.h, with sketch and norm in the device's memory.
void sketch(const Plan& plan, float* sketch, int64_t num_buckets, double* norm, int64_t first,
            uint64_t key);

// Counts of steps, each with this one included.
struct StepCounts {
  std::vector<double> counts;  // [T], on the host; empty: on the device, or there are none
  std::vector<void*> at;       // [T], in the device's memory; empty: on the host, or there are none
  bool wide = false;           // those in `at` are float64, not float32
};

// targets: [1 + S] lists of T pointers, of the parameters and the rule's states. lr_at and scale_at of the update are
// in the device's memory.
void update(const Plan& plan, const double* weights, const Update& update,
            const std::vector<const std::vector<void*>*>& targets, const StepCounts& steps);

// The solver's number in csrc/solvers/table.h; all pointers but the options are in the device's memory. `workspace`:
// how many doubles it needs beside the [K, K] of its own.
void solve(const at::Device& device, const std::string& kernel, const SolveArgs& args,
           int num_options, int64_t workspace, int* status);

}  // namespace mtlfast::cuda
