#include "targets.h"

#include <ATen/MemoryOverlap.h>
#include <ATen/ops/empty_strided.h>
#include <c10/core/GradMode.h>
#include <c10/core/InferenceMode.h>
#include <torch/csrc/autograd/python_variable.h>

#include <string>

namespace mtlfast {
namespace {

void check_fits(const at::Tensor& tensor, const at::Tensor& like, const Name& entry) {
  if (is_plain(tensor, like.device()) && tensor.scalar_type() == like.scalar_type() &&
      tensor.sizes() == like.sizes())
    return;
  const std::string name = entry;
  check_plain(tensor, name, like.device());
  if (tensor.scalar_type() != like.scalar_type() || tensor.sizes() != like.sizes())
    throw py::value_error(name + ": expected " + c10::str(like.sizes()) + " of " +
                          c10::toString(like.scalar_type()) + ", as the task gradients, found " +
                          c10::str(tensor.sizes()) + " of " + c10::toString(tensor.scalar_type()));
}

void write(Plan& plan, const py::handle& task_grads, Targets& targets, bool accumulate,
           const Kernel& kernel) {
  if (accumulate) targets.fetch();
  run_unlocked(plan, task_grads, [&] { kernel(targets.data, accumulate); });
  targets.finish();
}

}  // namespace

const at::Tensor& tensor_at(const py::list& list, const Name& name) {
  PyObject* object = PyList_GET_ITEM(list.ptr(), name.t);
  if (!THPVariable_Check(object))
    throw py::type_error(std::string(name) + ": expected a tensor, found " +
                         Py_TYPE(object)->tp_name);
  return THPVariable_Unpack(object);
}

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

Targets::Targets(int64_t count)
    : tensors(static_cast<size_t>(count)),
      stand_ins(static_cast<size_t>(count)),
      data(static_cast<size_t>(count), nullptr) {}

void Targets::set(int64_t t, at::Tensor tensor, const at::Tensor& like) {
  const bool in_place =
      !tensor.is_neg() &&
      ((tensor.is_contiguous() && like.is_contiguous()) ||
       (tensor.strides() == like.strides() && tensor.is_non_overlapping_and_dense()));
  if (!in_place) stand_ins[t] = at::empty_strided(like.sizes(), like.strides(), like.options());
  data[t] = in_place ? tensor.mutable_data_ptr() : stand_ins[t].mutable_data_ptr();
  tensors[t] = std::move(tensor);
}

void Targets::fetch() {
  for (size_t t = 0; t < tensors.size(); ++t)
    if (stand_ins[t].defined()) stand_ins[t].copy_(tensors[t]);
}

void Targets::finish() {
  for (size_t t = 0; t < tensors.size(); ++t) {
    if (stand_ins[t].defined()) {
      tensors[t].copy_(stand_ins[t]);
    } else if (tensors[t].defined()) {
      tensors[t].unsafeGetTensorImpl()->bump_version();
    }
  }
}

py::list write_list(Plan& plan, const py::object& task_grads, const std::optional<py::list>& out,
                    const Kernel& kernel) {
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
    const at::Tensor& target = tensor_at(*out, name);
    check_target(target, *like, name);
    targets.set(t, target, *like);
  }
  write(plan, task_grads, targets, false, kernel);
  if (out) return *out;

  py::list result(static_cast<size_t>(plan.num_tensors));
  for (int64_t t = 0; t < plan.num_tensors; ++t)
    result[t] = targets.tensors[t].defined()
                    ? py::reinterpret_steal<py::object>(THPVariable_Wrap(targets.tensors[t]))
                    : py::none();
  return result;
}

void write_grads(Plan& plan, const py::list& params, const py::object& task_grads, bool accumulate,
                 const Kernel& kernel) {
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
    const at::Tensor& param = tensor_at(params, name);
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
  if (any_kept) write(plan, task_grads, kept, accumulate, kernel);
  if (any_fresh) write(plan, task_grads, fresh, false, kernel);
  for (int64_t t = 0; t < plan.num_tensors; ++t)
    if (fresh.tensors[t].defined())
      THPVariable_Unpack(PyList_GET_ITEM(params.ptr(), t)).mutable_grad() = fresh.tensors[t];
}

}  // namespace mtlfast
