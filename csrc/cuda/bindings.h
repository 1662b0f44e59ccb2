// What Python says about CUDA: where the kernels come from, and the simulation for tests.
#pragma once

#include <torch/csrc/utils/pybind.h>

namespace mtlfast::cuda {

void define(py::module_& module);

}  // namespace mtlfast::cuda
