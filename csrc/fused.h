// The entry points that combine task gradients and make an optimizer's update in one pass.
#pragma once

#include <torch/csrc/utils/pybind.h>

namespace mtlfast {

void define_fused(py::module_& module);

}  // namespace mtlfast
