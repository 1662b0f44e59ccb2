// The Python module mtlfast._C: entry points, and beside each one the checks of its arguments.
#include <ATen/MemoryOverlap.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_strided.h>
#include <ATen/Parallel.h>
#include <c10/core/GradMode.h>
#include <c10/core/InferenceMode.h>
#include <torch/csrc/autograd/python_variable.h>
#include <torch/csrc/utils/pybind.h>

#include <optional>
#include <string>
#include <vector>

#include "cpu/solve.h"
#include "plan.h"

namespace mtlfast {
namespace {

// One plan per thread: its vectors keep their capacity, so a call allocates nothing but its result.
Plan& thread_plan() {
  thread_local Plan plan;
  return plan;
}

void check_tensor(const at::Tensor& tensor, const char* name, at::ScalarType type,
                  at::IntArrayRef shape) {
  check_plain(tensor, name);
  if (tensor.is_neg() || tensor.scalar_type() != type || tensor.sizes() != shape ||
      !tensor.is_contiguous())
    throw py::value_error(std::string(name) + ": expected a contiguous CPU tensor " +
                          c10::str(shape) + " of " + c10::toString(type) + ", found " +
                          c10::str(tensor.sizes()) + " of " + c10::toString(tensor.scalar_type()) +
                          " on " + tensor.device().str());
}

// Runs work() without the interpreter's lock where it is long enough for another thread to care.
template <class Work>
void run_unlocked(Plan& plan, const py::handle& task_grads, Work work) {
  if (!plan.is_large()) return work();
  plan.hold(task_grads.ptr());
  const py::gil_scoped_release unlocked;
  work();
}

// Drops the references that a call has taken, also when it ends by an exception.
struct Release {
  Plan& plan;
  ~Release() {
    plan.copies.clear();
    plan.alive.clear();
  }
};

at::Tensor gramian(const py::object& task_grads) {
  Plan& plan = thread_plan();
  const Release release{plan};
  plan.read(task_grads.ptr());
  at::Tensor out = at::empty({plan.num_tasks, plan.num_tasks}, at::kDouble);
  double* data = out.mutable_data_ptr<double>();
  run_unlocked(plan, task_grads, [&] { cpu::gramian(plan, data); });
  return out;
}

// Where the combined gradients go: each tensor itself, or a dense stand-in that is copied over at the end.
struct Targets {
  std::vector<at::Tensor> tensors;    // [T]; undefined: no task reaches it
  std::vector<at::Tensor> stand_ins;  // [T]; undefined: written in place
  std::vector<void*> data;            // [T]

  explicit Targets(int64_t count)
      : tensors(static_cast<size_t>(count)),
        stand_ins(static_cast<size_t>(count)),
        data(static_cast<size_t>(count), nullptr) {}

  void set(int64_t t, at::Tensor tensor, const at::Tensor& like) {
    const bool in_place =
        !tensor.is_neg() &&
        ((tensor.is_contiguous() && like.is_contiguous()) ||
         (tensor.strides() == like.strides() && tensor.is_non_overlapping_and_dense()));
    if (!in_place) stand_ins[t] = at::empty_strided(like.sizes(), like.strides(), like.options());
    data[t] = in_place ? tensor.mutable_data_ptr() : stand_ins[t].mutable_data_ptr();
    tensors[t] = std::move(tensor);
  }
};

// How messages call entry t of a list; the text is made only when one is needed.
struct Name {
  const char* list;
  int64_t t;
  const char* attribute;

  operator std::string() const { return list + ("[" + std::to_string(t)) + "]" + attribute; }
};

void check_fits(const at::Tensor& tensor, const at::Tensor& like, const Name& entry) {
  if (is_plain(tensor) && tensor.scalar_type() == like.scalar_type() &&
      tensor.sizes() == like.sizes())
    return;
  const std::string name = entry;
  check_plain(tensor, name);
  if (tensor.scalar_type() != like.scalar_type() || tensor.sizes() != like.sizes())
    throw py::value_error(name + ": expected " + c10::str(like.sizes()) + " of " +
                          c10::toString(like.scalar_type()) + ", as the task gradients, found " +
                          c10::str(tensor.sizes()) + " of " + c10::toString(tensor.scalar_type()));
}

// Everything that could stop a write is found before the first one: a call writes all targets or none.
void check_target(const at::Tensor& out, const at::Tensor& like, const Name& entry) {
  check_fits(out, like, entry);
  if (at::has_internal_overlap(out) == at::MemOverlap::Yes)
    throw py::value_error(std::string(entry) +
                          ": expected memory of its own for each element, found a tensor "
                          "whose elements overlap (expand?)");
  if (out.requires_grad() && c10::GradMode::is_enabled())
    throw py::value_error(std::string(entry) +
                          ": expected a tensor to write in place, found one that requires grad");
  if (out.is_inference() && !c10::InferenceMode::is_enabled())
    throw py::value_error(std::string(entry) +
                          ": expected a tensor to write in place, found an inference tensor");
}

at::Tensor check_weights(const at::Tensor& weights, int64_t num_tasks) {
  check_plain(weights, "weights");
  if (weights.scalar_type() != at::kDouble || weights.dim() != 1 || weights.numel() != num_tasks)
    throw py::value_error("weights: expected [" + std::to_string(num_tasks) +
                          "] of Double, found " + c10::str(weights.sizes()) + " of " +
                          c10::toString(weights.scalar_type()));
  return weights.resolve_neg().contiguous();
}

void write(Plan& plan, const py::handle& task_grads, const at::Tensor& weights, Targets& targets,
           bool accumulate) {
  if (accumulate)
    for (int64_t t = 0; t < plan.num_tensors; ++t)
      if (targets.stand_ins[t].defined()) targets.stand_ins[t].copy_(targets.tensors[t]);
  const double* data = weights.const_data_ptr<double>();
  run_unlocked(plan, task_grads, [&] { cpu::combine(plan, data, targets.data, accumulate); });
  for (int64_t t = 0; t < plan.num_tensors; ++t) {
    if (targets.stand_ins[t].defined()) {
      targets.tensors[t].copy_(targets.stand_ins[t]);
    } else if (targets.tensors[t].defined()) {
      targets.tensors[t].unsafeGetTensorImpl()->bump_version();
    }
  }
}

py::list combine(const py::object& task_grads, const at::Tensor& weights,
                 const std::optional<py::list>& out) {
  Plan& plan = thread_plan();
  const Release release{plan};
  plan.read(task_grads.ptr());
  const at::Tensor factors = check_weights(weights, plan.num_tasks);
  if (out && static_cast<int64_t>(out->size()) != plan.num_tensors)
    throw py::value_error("out: expected " + std::to_string(plan.num_tensors) +
                          " entries, as in task_grads[0], found " + std::to_string(out->size()));

  Targets targets(plan.num_tensors);
  for (int64_t t = 0; t < plan.num_tensors; ++t) {
    const at::Tensor* like = plan.like[t];
    if (like == nullptr) continue;
    if (!out) {
      targets.set(t, at::empty_strided(like->sizes(), like->strides(), like->options()), *like);
      continue;
    }
    const Name name{"out", t, ""};
    PyObject* object = PyList_GET_ITEM(out->ptr(), t);
    if (!THPVariable_Check(object))
      throw py::type_error(std::string(name) + ": expected a tensor, found " +
                           Py_TYPE(object)->tp_name);
    check_target(THPVariable_Unpack(object), *like, name);
    targets.set(t, THPVariable_Unpack(object), *like);
  }
  write(plan, task_grads, factors, targets, false);
  if (out) return *out;

  py::list result(static_cast<size_t>(plan.num_tensors));
  for (int64_t t = 0; t < plan.num_tensors; ++t)
    result[t] = targets.tensors[t].defined()
                    ? py::reinterpret_steal<py::object>(THPVariable_Wrap(targets.tensors[t]))
                    : py::none();
  return result;
}

void combine_into_grad(const py::list& params, const py::object& task_grads,
                       const at::Tensor& weights, bool accumulate) {
  Plan& plan = thread_plan();
  const Release release{plan};
  plan.read(task_grads.ptr());
  const at::Tensor factors = check_weights(weights, plan.num_tasks);
  if (static_cast<int64_t>(params.size()) != plan.num_tensors)
    throw py::value_error("params: expected " + std::to_string(plan.num_tensors) +
                          " entries, as in task_grads[0], found " + std::to_string(params.size()));

  Targets kept(plan.num_tensors);   // parameters that hold a gradient
  Targets fresh(plan.num_tensors);  // parameters that get one
  bool any_kept = false;
  bool any_fresh = false;
  for (int64_t t = 0; t < plan.num_tensors; ++t) {
    const at::Tensor* like = plan.like[t];
    if (like == nullptr) continue;
    const Name name{"params", t, ""};
    PyObject* object = PyList_GET_ITEM(params.ptr(), t);
    if (!THPVariable_Check(object))
      throw py::type_error(std::string(name) + ": expected a tensor, found " +
                           Py_TYPE(object)->tp_name);
    const at::Tensor& param = THPVariable_Unpack(object);
    check_fits(param, *like, name);
    if (param.grad().defined()) {
      check_target(param.grad(), *like, Name{"params", t, ".grad"});
      kept.set(t, param.grad(), *like);
      any_kept = true;
    } else {
      // A gradient laid out as its parameter, which is what optimizers are fastest with.
      const at::Tensor& layout = param.is_non_overlapping_and_dense() ? param : *like;
      fresh.set(t, at::empty_strided(layout.sizes(), layout.strides(), like->options()), *like);
      any_fresh = true;
    }
  }
  if (any_kept) write(plan, task_grads, factors, kept, accumulate);
  if (any_fresh) write(plan, task_grads, factors, fresh, false);
  for (int64_t t = 0; t < plan.num_tensors; ++t)
    if (fresh.tensors[t].defined())
      THPVariable_Unpack(PyList_GET_ITEM(params.ptr(), t)).mutable_grad() = fresh.tensors[t];
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
  const int64_t num_tasks = given.dim() == (gramian ? 2 : 1) ? given.size(0) : 0;
  if (num_tasks == 0)
    throw py::value_error(std::string(gramian ? "gramian: expected shape [K, K], found "
                                              : "losses: expected shape [K], found ") +
                          c10::str(given.sizes()));
  if (gramian) check_tensor(*gramian, "gramian", at::kDouble, {num_tasks, num_tasks});
  if (static_cast<int>(options.size()) != solver->num_options)
    throw py::value_error("options: expected " + std::to_string(solver->num_options) +
                          " numbers, found " + std::to_string(options.size()));
  if (losses) check_tensor(*losses, "losses", at::kDouble, {num_tasks});
  if (inputs) check_tensor(*inputs, "inputs", at::kDouble, {num_tasks});
  if (order) check_tensor(*order, "order", at::kLong, {num_tasks, num_tasks});
  if (rng) check_tensor(*rng, "rng", at::kLong, {2});
  if (state)
    check_tensor(*state, "state", at::kDouble, {solver->state_size(static_cast<int>(num_tasks))});
  if (status) check_tensor(*status, "status", at::kInt, {});

  at::Tensor weights = at::empty({num_tasks}, at::kDouble);
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
  const int outcome = solver->run(args);
  if (status) *status->mutable_data_ptr<int>() = outcome;
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
  module.def("solve", &run_solver, py::arg("name"), py::arg("gramian"), py::arg("options"),
             py::arg("losses"), py::arg("inputs"), py::arg("order"), py::arg("rng"),
             py::arg("state"), py::arg("status"));
  module.def("isa", [] { return kernels().isa; });
  module.def("force_isa", &force_isa, py::arg("name"));
  module.def("supported_isas", &supported_isas);
  module.def("num_threads", [] { return at::get_num_threads(); });
  kernels();  // an impossible MTLFAST_ISA is an error of the import, not of the first step
}
