// What every entry point starts with: the plan of its thread, and checks of its arguments.
#pragma once

#include <ATen/core/Tensor.h>
#include <torch/csrc/utils/pybind.h>

#include <string>

#include "plan.h"

namespace mtlfast {

// One plan per thread: its vectors keep their capacity, so a call allocates nothing but its result.
inline Plan& thread_plan() {
  thread_local Plan plan;
  return plan;
}

// Drops the references that a call has taken, also when it ends by an exception.
struct Release {
  Plan& plan;
  ~Release() {
    plan.copies.clear();
    plan.alive.clear();
  }
};

inline void check_tensor(const at::Tensor& tensor, const char* name, at::ScalarType type,
                         at::IntArrayRef shape, const at::Device& device) {
  check_plain(tensor, name, device);
  if (tensor.is_neg() || tensor.scalar_type() != type || tensor.sizes() != shape ||
      !tensor.is_contiguous())
    throw py::value_error(std::string(name) + ": expected a contiguous tensor " + c10::str(shape) +
                          " of " + c10::toString(type) + " on " + device.str() + ", found " +
                          c10::str(tensor.sizes()) + " of " + c10::toString(tensor.scalar_type()) +
                          " on " + tensor.device().str());
}

// [K] float64 on the gradients' device, contiguous.
inline at::Tensor check_weights(const at::Tensor& weights, const Plan& plan) {
  check_plain(weights, "weights", plan.device);
  if (weights.scalar_type() != at::kDouble || weights.dim() != 1 ||
      weights.numel() != plan.num_tasks)
    throw py::value_error("weights: expected [" + std::to_string(plan.num_tasks) +
                          "] of Double, found " + c10::str(weights.sizes()) + " of " +
                          c10::toString(weights.scalar_type()));
  return weights.resolve_neg().contiguous();
}

// As run_unlocked(), for a plan that keeps its tensors alive.
template <class Work>
void run_held(const Plan& plan, Work work) {
  if (!plan.is_large() || !plan.device.is_cpu()) return work();  // launches do not wait
  const py::gil_scoped_release unlocked;
  work();
}

// Runs work() without the interpreter's lock where it is long enough for another thread to care.
template <class Work>
void run_unlocked(Plan& plan, const py::handle& task_grads, Work work) {
  if (plan.is_large() && plan.device.is_cpu()) plan.hold(task_grads.ptr());
  run_held(plan, work);
}

}  // namespace mtlfast
