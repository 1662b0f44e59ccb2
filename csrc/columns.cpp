#include "columns.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/empty_strided.h>
#include <ATen/ops/zeros.h>
#include <torch/csrc/autograd/python_variable.h>

#include <optional>
#include <string>
#include <vector>

#include "cuda/kernels.h"
#include "cuda/launch.h"
#include "targets.h"

namespace mtlfast {
namespace {

// GradDrop's arguments, checked and laid out for the kernel.
struct Drop {
  const Plan& plan;
  std::optional<at::Tensor> leak;      // [K]
  std::optional<at::Tensor> rng;       // [2]
  std::vector<at::Tensor> owners;      // of what `uniform` points to
  std::vector<const double*> uniform;  // [T]; empty: drawn from rng

  Drop(const Plan& plan, const std::optional<at::Tensor>& leak,
       const std::optional<at::Tensor>& given, const std::optional<at::Tensor>& rng)
      : plan(plan), leak(leak), rng(rng) {
    if (leak) check_tensor(*leak, "leak", at::kDouble, {plan.num_tasks}, plan.device);
    if (!given) {
      if (!rng) throw py::value_error("rng: expected [2] where uniform is None, found None");
      check_tensor(*rng, "rng", at::kLong, {2}, plan.device);
      return;
    }
    check_tensor(*given, "uniform", at::kDouble, {plan.num_columns}, plan.device);
    for (int64_t t = 0; t < plan.num_tensors; ++t) {
      const at::Tensor* like = plan.like[t];
      at::Tensor part = given->narrow(0, plan.offsets[t], plan.offsets[t + 1] - plan.offsets[t]);
      if (like != nullptr && !like->is_contiguous()) {
        // Given in the order of the elements, needed in the order of the memory.
        at::Tensor permuted = at::empty_strided(like->sizes(), like->strides(), given->options());
        permuted.copy_(part.view(like->sizes()));
        part = permuted;
      }
      uniform.push_back(part.const_data_ptr<double>());
      owners.push_back(std::move(part));
    }
  }

  Kernel kernel() const {
    return [this](const std::vector<void*>& outs, bool accumulate) {
      const auto run = cuda::is_ours(plan.device) ? &cuda::graddrop : &cpu::graddrop;
      run(plan, leak ? leak->const_data_ptr<double>() : nullptr, uniform,
          rng ? rng->const_data_ptr<int64_t>() : nullptr, outs, accumulate);
    };
  }

  // The next call draws other numbers.
  void advance() const {
    if (!uniform.empty() || !rng) return;
    int64_t* numbers = rng->mutable_data_ptr<int64_t>();
    cuda::is_ours(plan.device) ? cuda::advance(plan.device, numbers) : void(++numbers[1]);
  }
};

py::list graddrop(const py::object& task_grads, const std::optional<at::Tensor>& leak,
                  const std::optional<at::Tensor>& uniform, const std::optional<at::Tensor>& rng,
                  const std::optional<py::list>& out) {
  Plan& plan = thread_plan();
  const Release release{plan};
  plan.read(task_grads.ptr());
  const Drop drop(plan, leak, uniform, rng);
  py::list result = write_list(plan, task_grads, out, drop.kernel());
  drop.advance();
  return result;
}

void graddrop_into_grad(const py::list& params, const py::object& task_grads,
                        const std::optional<at::Tensor>& leak,
                        const std::optional<at::Tensor>& uniform,
                        const std::optional<at::Tensor>& rng, bool accumulate) {
  Plan& plan = thread_plan();
  const Release release{plan};
  plan.read(task_grads.ptr());
  const Drop drop(plan, leak, uniform, rng);
  write_grads(plan, params, task_grads, accumulate, drop.kernel());
  drop.advance();
}

Kernel trimming(const Plan& plan, int64_t trim_number) {
  const int64_t largest = (plan.num_tasks - 1) / 2;
  if (trim_number < 0 || trim_number > largest)
    throw py::value_error("trim_number: expected a number in [0, " + std::to_string(largest) +
                          "] for " + std::to_string(plan.num_tasks) + " tasks, found " +
                          std::to_string(trim_number));
  return [&plan, trim_number](const std::vector<void*>& outs, bool accumulate) {
    const auto run = cuda::is_ours(plan.device) ? &cuda::trimmed_mean : &cpu::trimmed_mean;
    run(plan, static_cast<int>(trim_number), outs, accumulate);
  };
}

py::list trimmed_mean(const py::object& task_grads, int64_t trim_number,
                      const std::optional<py::list>& out) {
  Plan& plan = thread_plan();
  const Release release{plan};
  plan.read(task_grads.ptr());
  return write_list(plan, task_grads, out, trimming(plan, trim_number));
}

void trimmed_mean_into_grad(const py::list& params, const py::object& task_grads,
                            int64_t trim_number, bool accumulate) {
  Plan& plan = thread_plan();
  const Release release{plan};
  plan.read(task_grads.ptr());
  write_grads(plan, params, task_grads, accumulate, trimming(plan, trim_number));
}

// The sums of squares so far of task k and tensor t, laid out as the gradients; undefined: zeros.
at::Tensor old_squares(PyObject* object, const at::Tensor& like, at::ScalarType type, int64_t k,
                       int64_t t) {
  if (object == Py_None) return {};
  const std::string name = "squares[" + std::to_string(k) + "][" + std::to_string(t) + "]";
  if (!THPVariable_Check(object))
    throw py::type_error(name + ": expected a tensor or None, found " + Py_TYPE(object)->tp_name);
  const at::Tensor& old = THPVariable_Unpack(object);
  check_plain(old, name, like.device());
  if (old.scalar_type() != type || old.sizes() != like.sizes())
    throw py::value_error(name + ": expected " + c10::str(like.sizes()) + " of " +
                          c10::toString(type) + ", found " + c10::str(old.sizes()) + " of " +
                          c10::toString(old.scalar_type()));
  if (!old.is_neg() && old.strides() == like.strides()) return old;
  at::Tensor copy = at::empty_strided(like.sizes(), like.strides(), old.options());
  copy.copy_(old);
  return copy;
}

py::tuple excess(const py::object& task_grads, const std::optional<py::list>& squares) {
  Plan& plan = thread_plan();
  const Release release{plan};
  plan.read(task_grads.ptr());
  const int64_t num_tasks = plan.num_tasks;
  const auto wrong = [](const std::string& name, int64_t expected, const std::string& found) {
    return py::value_error(name + ": expected a list of " + std::to_string(expected) +
                           " entries, as the task gradients, found " + found);
  };
  if (squares && static_cast<int64_t>(squares->size()) != num_tasks)
    throw wrong("squares", num_tasks, std::to_string(squares->size()));

  py::list sums(static_cast<size_t>(num_tasks));
  const size_t count = static_cast<size_t>(num_tasks * plan.num_tensors);
  std::vector<at::Tensor> held;  // the old sums, whatever happens to their lists meanwhile
  std::vector<const void*> old(count, nullptr);
  std::vector<void*> data(count, nullptr);
  for (int64_t k = 0; k < num_tasks; ++k) {
    PyObject* old_row = squares ? PyList_GET_ITEM(squares->ptr(), k) : nullptr;
    if (old_row != nullptr &&
        (!PyList_Check(old_row) || PyList_GET_SIZE(old_row) != plan.num_tensors))
      throw wrong("squares[" + std::to_string(k) + "]", plan.num_tensors,
                  PyList_Check(old_row) ? std::to_string(PyList_GET_SIZE(old_row))
                                        : Py_TYPE(old_row)->tp_name);
    py::list row(static_cast<size_t>(plan.num_tensors));
    for (int64_t t = 0; t < plan.num_tensors; ++t) {
      PyObject* object = old_row == nullptr ? Py_None : PyList_GET_ITEM(old_row, t);
      const int64_t at = t * num_tasks + k;
      if (plan.rows[at] == nullptr) {
        row[t] = py::reinterpret_borrow<py::object>(object);
        continue;
      }
      const at::Tensor& like = *plan.like[t];
      const at::ScalarType type = like.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
      at::Tensor before = old_squares(object, like, type, k, t);
      const at::Tensor after =
          at::empty_strided(like.sizes(), like.strides(), like.options().dtype(type));
      if (before.defined()) old[at] = before.const_data_ptr();
      data[at] = after.mutable_data_ptr();
      held.push_back(std::move(before));
      row[t] = py::reinterpret_steal<py::object>(THPVariable_Wrap(after));
    }
    sums[k] = row;
  }
  const auto options = at::TensorOptions().dtype(at::kDouble).device(plan.device);
  // No kernel writes the excesses where there are no columns.
  at::Tensor out =
      plan.num_columns == 0 ? at::zeros({num_tasks}, options) : at::empty({num_tasks}, options);
  double* values = out.mutable_data_ptr<double>();
  const auto run = cuda::is_ours(plan.device) ? &cuda::excess : &cpu::excess;
  run_unlocked(plan, task_grads, [&] { run(plan, old, data, values); });
  return py::make_tuple(py::reinterpret_steal<py::object>(THPVariable_Wrap(out)), sums);
}

}  // namespace

void define_columns(py::module_& module) {
  module.def("graddrop", &graddrop, py::arg("task_grads"), py::arg("leak"), py::arg("uniform"),
             py::arg("rng"), py::arg("out"));
  module.def("graddrop_into_grad", &graddrop_into_grad, py::arg("params"), py::arg("task_grads"),
             py::arg("leak"), py::arg("uniform"), py::arg("rng"), py::arg("accumulate"));
  module.def("trimmed_mean", &trimmed_mean, py::arg("task_grads"), py::arg("trim_number"),
             py::arg("out"));
  module.def("trimmed_mean_into_grad", &trimmed_mean_into_grad, py::arg("params"),
             py::arg("task_grads"), py::arg("trim_number"), py::arg("accumulate"));
  module.def("excess", &excess, py::arg("task_grads"), py::arg("squares"));
}

}  // namespace mtlfast
