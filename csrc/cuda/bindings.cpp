#include "bindings.h"

#include <string>

#include "launch.h"

namespace mtlfast::cuda {

void define(py::module_& module) {
  py::module_ own = module.def_submodule("cuda", "Where the CUDA kernels come from.");
  own.def("add_image", [](const py::bytes& image) { add_image(image); }, py::arg("image"));
  own.def(
      "set_compiler",
      [](const py::object& compiler) {
        if (compiler.is_none()) return set_compiler(nullptr);
        // Kept for ever: the interpreter may be gone before the library is.
        py::handle kept = compiler.inc_ref();
        set_compiler([kept](const std::string& name, int device) {
          return std::string(py::cast<py::bytes>(kept(name, device)));
        });
      },
      py::arg("compiler"));
  own.def("has_kernels", &has_kernels);
  own.def("launch_counts", [] {
    py::dict counts;
    for (const auto& [name, count] : launch_counts()) counts[py::str(name)] = count;
    return counts;
  });
  own.def("simulate", &simulate, py::arg("library"));
  own.def("simulated", &simulated);
}

}  // namespace mtlfast::cuda
