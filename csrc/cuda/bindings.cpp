#include "bindings.h"

#include <string>

#include "kernels.h"
#include "launch.h"

namespace mtlfast::cuda {

void define(py::module_& module) {
  py::module_ own = module.def_submodule("cuda", "Where the CUDA kernels come from.");
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
  own.def("launch_counts", [] {
    py::dict counts;
    for (const auto& [name, count] : launch_counts()) counts[py::str(name)] = count;
    return counts;
  });
  own.def(
      "force_sums",
      [](const std::string& sums) {
        if (sums != "auto" && sums != "float32" && sums != "float64")
          throw py::value_error("sums: expected auto, float32 or float64, found " + sums);
        force_sums(sums == "auto" ? Sums::kAuto
                                  : (sums == "float32" ? Sums::kFloat32 : Sums::kFloat64));
      },
      py::arg("sums"));
  own.def("simulate", &simulate, py::arg("library"));
  own.def("simulated", &simulated);
}

}  // namespace mtlfast::cuda
