// The Python module mtlfast._C: entry points, and beside each one the checks of its arguments.
#include <ATen/ops/empty.h>
#include <ATen/Parallel.h>

#include <optional>
#include <string>
#include <vector>

#include "columns.h"
#include "cpu/solve.h"
#include "cuda/bindings.h"
#include "cuda/kernels.h"
#include "cuda/launch.h"
#include "fused.h"
#include "sketch.h"
#include "targets.h"

namespace mtlfast {
namespace {

at::Tensor gramian(const py::object& task_grads) {
  Plan& plan = thread_plan();
  const Release release{plan};
  plan.read(task_grads.ptr());
  if (cuda::is_ours(plan.device)) return cuda::gramian(plan);
  at::Tensor out = at::empty({plan.num_tasks, plan.num_tasks}, at::kDouble);
  double* data = out.mutable_data_ptr<double>();
  run_unlocked(plan, task_grads, [&] { cpu::gramian(plan, data); });
  return out;
}

Kernel combination(const Plan& plan, const at::Tensor& factors) {
  return [&plan, factors](const std::vector<void*>& outs, bool accumulate) {
    const auto run = cuda::is_ours(plan.device) ? &cuda::combine : &cpu::combine;
    run(plan, factors.const_data_ptr<double>(), outs, accumulate);
  };
}

py::list combine(const py::object& task_grads, const at::Tensor& weights,
                 const std::optional<py::list>& out) {
  Plan& plan = thread_plan();
  const Release release{plan};
  plan.read(task_grads.ptr());
  const at::Tensor factors = check_weights(weights, plan);
  return write_list(plan, task_grads, out, combination(plan, factors));
}

void combine_into_grad(const py::list& params, const py::object& task_grads,
                       const at::Tensor& weights, bool accumulate) {
  Plan& plan = thread_plan();
  const Release release{plan};
  plan.read(task_grads.ptr());
  const at::Tensor factors = check_weights(weights, plan);
  write_grads(plan, params, task_grads, accumulate, combination(plan, factors));
}

at::Tensor run_solver(const char* name, const std::optional<at::Tensor>& gramian,
                      const std::vector<double>& options, const std::optional<at::Tensor>& losses,
                      const std::optional<at::Tensor>& inputs,
                      const std::optional<at::Tensor>& order, const std::optional<at::Tensor>& rng,
                      const std::optional<at::Tensor>& state,
                      const std::optional<at::Tensor>& status) {
  const cpu::SolverEntry* solver = cpu::find_solver(name);
  if (solver == nullptr)
    throw py::key_error(std::string("name: no native solver is called '") + name + "'");
  if (!gramian && !losses)
    throw py::value_error("gramian: expected [K, K], or losses [K] instead, found None");
  const at::Tensor& given = gramian ? *gramian : *losses;
  const at::Device device = given.device();
  const int64_t num_tasks = given.dim() == (gramian ? 2 : 1) ? given.size(0) : 0;
  if (num_tasks == 0)
    throw py::value_error(std::string(gramian ? "gramian: expected shape [K, K], found "
                                              : "losses: expected shape [K], found ") +
                          c10::str(given.sizes()));
  if (gramian) check_tensor(*gramian, "gramian", at::kDouble, {num_tasks, num_tasks}, device);
  if (static_cast<int>(options.size()) != solver->num_options)
    throw py::value_error("options: expected " + std::to_string(solver->num_options) +
                          " numbers, found " + std::to_string(options.size()));
  if (losses) check_tensor(*losses, "losses", at::kDouble, {num_tasks}, device);
  if (inputs) check_tensor(*inputs, "inputs", at::kDouble, {num_tasks}, device);
  if (order) check_tensor(*order, "order", at::kLong, {num_tasks, num_tasks}, device);
  if (rng) check_tensor(*rng, "rng", at::kLong, {2}, device);
  if (state)
    check_tensor(*state, "state", at::kDouble, {solver->state_size(static_cast<int>(num_tasks))},
                 device);
  if (status) check_tensor(*status, "status", at::kInt, {}, device);

  at::Tensor weights =
      at::empty({num_tasks}, at::TensorOptions().dtype(at::kDouble).device(device));
  static_assert(sizeof(int64) == sizeof(int64_t));
  SolveArgs args = {};
  args.num_tasks = static_cast<int>(num_tasks);
  args.gramian = gramian ? gramian->const_data_ptr<double>() : nullptr;
  args.losses = losses ? losses->const_data_ptr<double>() : nullptr;
  args.inputs = inputs ? inputs->const_data_ptr<double>() : nullptr;
  args.order = order ? reinterpret_cast<const int64*>(order->const_data_ptr<int64_t>()) : nullptr;
  args.rng = rng ? reinterpret_cast<int64*>(rng->mutable_data_ptr<int64_t>()) : nullptr;
  args.state = state ? state->mutable_data_ptr<double>() : nullptr;
  args.options = options.data();
  args.weights = weights.mutable_data_ptr<double>();
  int* outcome = status ? status->mutable_data_ptr<int>() : nullptr;
  if (cuda::is_ours(device)) {
    cuda::solve(device, solver->kernel, args, solver->num_options,
                solver->workspace(args.num_tasks), outcome);
    return weights;
  }
  const int found = solver->run(args);
  if (outcome != nullptr) *outcome = found;
  return weights;
}

}  // namespace
}  // namespace mtlfast

PYBIND11_MODULE(TORCH_EXTENSION_NAME, module) {
  using namespace mtlfast;
  module.attr("torch_version") = MTLFAST_TORCH_VERSION;
  module.def("gramian", &gramian, py::arg("task_grads"));
  module.def("combine", &combine, py::arg("task_grads"), py::arg("weights"),
             py::arg("out") = py::none());
  module.def("combine_into_grad", &combine_into_grad, py::arg("params"), py::arg("task_grads"),
             py::arg("weights"), py::arg("accumulate"));
  define_columns(module);
  cuda::define(module);
  define_fused(module);
  define_sketch(module);
  module.def("solve", &run_solver, py::arg("name"), py::arg("gramian"), py::arg("options"),
             py::arg("losses"), py::arg("inputs"), py::arg("order"), py::arg("rng"),
             py::arg("state"), py::arg("status"));
  module.def("isa", [] { return kernels().isa; });
  module.def("force_isa", &force_isa, py::arg("name"));
  module.def("supported_isas", &supported_isas);
  module.def("num_threads", [] { return at::get_num_threads(); });
  kernels();  // an impossible MTLFAST_ISA is an error of the import, not of the first step
}
