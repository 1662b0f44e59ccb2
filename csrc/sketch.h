// The entry point that folds task gradients into sketches.
#pragma once

#include <torch/csrc/utils/pybind.h>

namespace mtlfast {

void define_sketch(py::module_& module);

}  // namespace mtlfast
