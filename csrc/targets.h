// Where a kernel's result goes: new tensors, given ones, or the gradients of parameters.
#pragma once

#include <torch/csrc/utils/pybind.h>

#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "entry.h"

namespace mtlfast {

// How messages call entry t of a list; the text is made only when one is needed.
struct Name {
  const char* list;
  int64_t t;
  const char* attribute;

  operator std::string() const { return list + ("[" + std::to_string(t)) + "]" + attribute; }
};

// Entry name.t of a list; TypeError for what is no tensor.
const at::Tensor& tensor_at(const py::list& list, const Name& name);

// Whether a kernel can write to `out` what belongs to `like`; everything that could stop a write is found before the
// first one: a call writes all targets or none.
void check_target(const at::Tensor& out, const at::Tensor& like, const Name& entry);

// T tensors to write to: each itself, or a dense stand-in that is copied over at the end.
struct Targets {
  std::vector<at::Tensor> tensors;    // [T]; undefined: no task reaches it
  std::vector<at::Tensor> stand_ins;  // [T]; undefined: written in place
  std::vector<void*> data;            // [T]

  explicit Targets(int64_t count);
  void set(int64_t t, at::Tensor tensor, const at::Tensor& like);
  void fetch();   // for a kernel that reads what it writes to
  void finish();  // after the kernel
};

// Writes (accumulate: adds) the result to outs[t] for every tensor t; null: skip it. It may be called more than once,
// for parts of the tensors.
using Kernel = std::function<void(const std::vector<void*>& outs, bool accumulate)>;

// The kernel's result in T tensors: those of `out`, or new ones. Of all targets or none is anything written.
py::list write_list(Plan& plan, const py::object& task_grads, const std::optional<py::list>& out,
                    const Kernel& kernel);

// The kernel's result in the parameters' gradients.
void write_grads(Plan& plan, const py::list& params, const py::object& task_grads, bool accumulate,
                 const Kernel& kernel);

}  // namespace mtlfast
