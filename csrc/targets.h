// Where a kernel's result goes: new tensors, given ones, or the gradients of parameters.
#pragma once

#include <torch/csrc/utils/pybind.h>

#include <functional>
#include <optional>
#include <vector>

#include "entry.h"

namespace mtlfast {

// Writes (accumulate: adds) the result to outs[t] for every tensor t; null: skip it. It may be called more than once,
// for parts of the tensors.
using Kernel = std::function<void(const std::vector<void*>& outs, bool accumulate)>;

// The kernel's result in T tensors: those of `out`, or new ones. Of all targets or none is anything written.
py::list write_list(Plan& plan, const py::object& task_grads, const std::optional<py::list>& out,
                    const Kernel& kernel);

// The kernel's result in the parameters' gradients.
void write_grads(Plan& plan, const py::list& params, const py::object& task_grads, bool accumulate,
                 const Kernel& kernel);

}  // namespace mtlfast
