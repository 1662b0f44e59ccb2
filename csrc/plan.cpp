#include "plan.h"

#include <ATen/ops/empty_strided.h>
#include <torch/csrc/autograd/python_variable.h>
#include <torch/csrc/utils/pybind.h>

#include <algorithm>
#include <string>

namespace mtlfast {
namespace {

std::string entry(Py_ssize_t k, Py_ssize_t t) {
  return "task_grads[" + std::to_string(k) + "][" + std::to_string(t) + "]";
}

std::string shape(const at::Tensor& tensor) {
  std::string text = "[";
  for (const int64_t size : tensor.sizes())
    text += (text.size() > 1 ? ", " : "") + std::to_string(size);
  return text + "]";
}

// A borrowed view of a list or tuple, which keep their items alive.
class Sequence {
 public:
  explicit Sequence(PyObject* object) : sequence_(object) {}

  static bool is(PyObject* object) { return PyList_Check(object) || PyTuple_Check(object); }

  Py_ssize_t size() const { return PySequence_Fast_GET_SIZE(sequence_); }
  PyObject* operator[](Py_ssize_t i) const { return PySequence_Fast_GET_ITEM(sequence_, i); }

 private:
  PyObject* sequence_;
};

template <class Entry>
ElementType element_type(const at::Tensor& tensor, Entry name) {
  switch (tensor.scalar_type()) {
    case at::kFloat: return kFloat32;
    case at::kDouble: return kFloat64;
    case at::kBFloat16: return kBFloat16;
    case at::kHalf: return kFloat16;
    default:
      throw py::type_error(name() + ": expected float32, float64, bfloat16 or float16, found " +
                           c10::toString(tensor.scalar_type()));
  }
}

bool same_layout(const at::Tensor& a, const at::Tensor& b) {
  if (a.is_contiguous() && b.is_contiguous()) return true;
  return a.strides() == b.strides() && a.is_non_overlapping_and_dense();
}

}  // namespace

bool is_plain(const at::Tensor& tensor, const at::Device& device) {
  const at::TensorImpl* impl = tensor.unsafeGetTensorImpl();
  return impl->layout() == at::kStrided && impl->device() == device && impl->has_storage() &&
         !impl->key_set().has(c10::DispatchKey::Python) &&
         (impl->numel() == 0 || tensor.const_data_ptr() != nullptr);
}

void check_plain(const at::Tensor& tensor, const std::string& name, const at::Device& device) {
  if (tensor.layout() != at::kStrided)
    throw py::type_error(name + ": expected a dense tensor, found layout " +
                         c10::str(tensor.layout()));
  if (tensor.device() != device)
    throw py::value_error(name + ": expected a tensor on " + device.str() + ", found " +
                          tensor.device().str());
  if (!tensor.has_storage() || tensor.key_set().has(c10::DispatchKey::Python))
    throw py::type_error(
        name +
        ": expected a plain tensor with memory of its own, found a tensor subclass or "
        "a functorch wrapper");
  if (tensor.numel() > 0 && tensor.const_data_ptr() == nullptr)
    throw py::value_error(name +
                          ": expected a tensor with memory, found one whose storage was freed");
}

void Plan::read(PyObject* task_grads) {
  if (!Sequence::is(task_grads))
    throw py::type_error(
        std::string("task_grads: expected a sequence of K sequences of tensors, found ") +
        Py_TYPE(task_grads)->tp_name);
  const Sequence tasks(task_grads);
  copies.clear();
  alive.clear();
  num_tasks = static_cast<int>(tasks.size());
  num_columns = 0;
  device = at::kCPU;
  bool known_device = false;
  const auto keep = [this](at::Tensor copy) -> const at::Tensor& {
    copies.push_back(std::move(copy));
    return copies.back();
  };
  if (num_tasks == 0) throw py::value_error("task_grads: expected at least one task, found none");

  for (Py_ssize_t k = 0; k < num_tasks; ++k) {
    if (!Sequence::is(tasks[k]))
      throw py::type_error("task_grads[" + std::to_string(k) +
                           "]: expected a sequence of tensors or None, found " +
                           Py_TYPE(tasks[k])->tp_name);
    const Sequence tensors(tasks[k]);
    if (k == 0) {
      num_tensors = tensors.size();
      rows.assign(static_cast<size_t>(num_tensors * num_tasks), nullptr);
      types.assign(static_cast<size_t>(num_tensors), kFloat32);
      like.assign(static_cast<size_t>(num_tensors), nullptr);
    } else if (tensors.size() != num_tensors) {
      throw py::value_error("task_grads[" + std::to_string(k) + "]: expected " +
                            std::to_string(num_tensors) + " entries, as in task_grads[0], found " +
                            std::to_string(tensors.size()));
    }
    for (Py_ssize_t t = 0; t < num_tensors; ++t) {
      PyObject* object = tensors[t];
      if (object == Py_None) continue;
      if (!THPVariable_Check(object))
        throw py::type_error(entry(k, t) + ": expected a tensor or None, found " +
                             Py_TYPE(object)->tp_name);
      const at::Tensor* tensor = &THPVariable_Unpack(object);
      const ElementType type = element_type(*tensor, [&] { return entry(k, t); });
      if (!known_device) {
        // The first tensor decides: the CPU or a GPU.
        if (tensor->is_cuda()) device = tensor->device();
        known_device = true;
      }
      if (!is_plain(*tensor, device)) check_plain(*tensor, entry(k, t), device);

      if (like[t] == nullptr) {
        if (tensor->is_neg() || !tensor->is_non_overlapping_and_dense()) {
          tensor = &keep(tensor->resolve_neg().contiguous());
        }
        like[t] = tensor;
        types[t] = type;
      } else {
        if (type != types[t])
          throw py::type_error(entry(k, t) + ": expected " + c10::toString(like[t]->scalar_type()) +
                               ", as for the other tasks, found " +
                               c10::toString(tensor->scalar_type()));
        if (tensor->sizes() != like[t]->sizes())
          throw py::value_error(entry(k, t) + ": expected shape " + shape(*like[t]) +
                                ", as for the other tasks, found " + shape(*tensor));
        if (tensor->is_neg() || !same_layout(*tensor, *like[t])) {
          at::Tensor copy =
              at::empty_strided(like[t]->sizes(), like[t]->strides(), like[t]->options());
          copy.copy_(*tensor);
          tensor = &keep(std::move(copy));
        }
      }
      rows[t * num_tasks + k] = tensor->const_data_ptr();
    }
  }

  offsets.resize(static_cast<size_t>(num_tensors) + 1);
  for (int64_t t = 0; t < num_tensors; ++t) {
    offsets[t] = num_columns;
    if (like[t] != nullptr) num_columns += like[t]->numel();
  }
  offsets[num_tensors] = num_columns;
}

void Plan::read_list(PyObject* list, const std::string& name) {
  if (!Sequence::is(list))
    throw py::type_error(name + ": expected a list of tensors, found " + Py_TYPE(list)->tp_name);
  const Sequence tensors(list);
  copies.clear();
  alive.clear();
  num_tasks = 1;
  num_tensors = tensors.size();
  num_columns = 0;
  device = at::kCPU;
  const size_t count = static_cast<size_t>(num_tensors);
  rows.resize(count);
  types.resize(count);
  like.resize(count);
  offsets.resize(count + 1);
  alive.reserve(count);  // `like` points into it
  for (Py_ssize_t t = 0; t < num_tensors; ++t) {
    const auto entry = [&] { return name + "[" + std::to_string(t) + "]"; };
    if (!THPVariable_Check(tensors[t]))
      throw py::type_error(entry() + ": expected a tensor, found " + Py_TYPE(tensors[t])->tp_name);
    const at::Tensor& tensor = THPVariable_Unpack(tensors[t]);
    types[t] = element_type(tensor, entry);
    if (t == 0 && tensor.is_cuda()) device = tensor.device();
    if (!is_plain(tensor, device)) check_plain(tensor, entry(), device);
    alive.push_back(tensor.resolve_neg().contiguous());
    like[t] = &alive.back();
    rows[t] = alive.back().const_data_ptr();
    offsets[t] = num_columns;
    num_columns += tensor.numel();
  }
  offsets[num_tensors] = num_columns;
}

void Plan::hold(PyObject* task_grads) {
  const Sequence tasks(task_grads);
  for (Py_ssize_t k = 0; k < num_tasks; ++k) {
    const Sequence tensors(tasks[k]);
    for (Py_ssize_t t = 0; t < num_tensors; ++t)
      if (tensors[t] != Py_None) alive.push_back(THPVariable_Unpack(tensors[t]));
  }
}

Groups make_groups(const Plan& plan, int64_t max_groups) {
  constexpr int64_t kMinElements = 32768;  // a thread's share that is worth the fork
  const int64_t elements = plan.num_columns * plan.num_tasks;
  const int64_t count = std::clamp(elements / kMinElements, int64_t{1}, max_groups);
  // Long shares end on whole float32 chunks (gramian_kernel.h), short ones on cache lines.
  return {count, plan.num_columns / count >= 16384 ? 4096 : 64};
}

}  // namespace mtlfast
