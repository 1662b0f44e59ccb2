// The entry points of the methods that look at every column by itself.
#pragma once

#include <torch/csrc/utils/pybind.h>

namespace mtlfast {

void define_columns(py::module_& module);

}  // namespace mtlfast
