#include "fused.h"

#include <ATen/ops/_foreach_add.h>
#include <c10/core/GradMode.h>
#include <math.h>
#include <torch/csrc/autograd/python_variable.h>

#include <optional>
#include <string>
#include <vector>

#include "cuda/kernels.h"
#include "cuda/launch.h"
#include "kernels/update_factors.h"
#include "targets.h"

namespace mtlfast {
namespace {

void check_length(const char* name, const py::list& list, int64_t num_tensors) {
  if (static_cast<int64_t>(list.size()) != num_tensors)
    throw py::value_error(std::string(name) + ": expected " + std::to_string(num_tensors) +
                          " entries, as in task_grads[0], found " + std::to_string(list.size()));
}

// The tensors' counts of steps, which the optimizer keeps in float32 or float64, on the host or beside the gradients.
class Steps {
 public:
  Steps(const py::list* list, const Plan& plan, bool on_device) : on_device_(on_device) {
    if (list == nullptr) return;
    check_length("steps", *list, plan.num_tensors);
    if (!on_device) counts_.counts.assign(static_cast<size_t>(plan.num_tensors), 0.0);
    if (on_device) counts_.at.assign(static_cast<size_t>(plan.num_tensors), nullptr);
    for (int64_t t = 0; t < plan.num_tensors; ++t)
      if (plan.like[t] != nullptr) take(*list, plan, t);
  }

  const cuda::StepCounts& counts() const { return counts_; }

  // This step included.
  double count(int64_t t) const {
    if (!counts_.counts.empty()) return counts_.counts[t];
    if (counts_.at.empty()) return 0.0;
    return counts_.wide ? *static_cast<double*>(counts_.at[t])
                        : static_cast<double>(*static_cast<float*>(counts_.at[t]));
  }

  // On a device by a launch, which can be captured; the kernel then reads what is there.
  void advance() {
    if (!tensors_.empty()) at::_foreach_add_(tensors_, 1);
  }

 private:
  void take(const py::list& list, const Plan& plan, int64_t t) {
    const Name name{"steps", t, ""};
    const at::Tensor& tensor = tensor_at(list, name);
    check_plain(tensor, name, on_device_ ? plan.device : at::Device(at::kCPU));
    const at::ScalarType type = tensor.scalar_type();
    const bool wide = type == at::kDouble;
    if (tensor.numel() != 1 || tensor.is_neg() || (type != at::kFloat && !wide))
      throw py::value_error(std::string(name) + ": expected one number of Float or Double, found " +
                            c10::str(tensor.sizes()) + " of " + c10::toString(type));
    if (on_device_ && !tensors_.empty() && wide != counts_.wide)
      throw py::value_error(std::string(name) + ": expected " +
                            c10::toString(tensors_[0].scalar_type()) + ", as the others, found " +
                            c10::toString(type));
    counts_.wide = wide;
    if (on_device_) {
      counts_.at[t] = tensor.mutable_data_ptr();
    } else {
      counts_.counts[t] = 1.0 + (wide ? *tensor.const_data_ptr<double>()
                                      : static_cast<double>(*tensor.const_data_ptr<float>()));
    }
    tensors_.push_back(tensor);
  }

  bool on_device_;
  cuda::StepCounts counts_;
  std::vector<at::Tensor> tensors_;
};

// A list of T tensors, and how messages call it.
struct Named {
  const char* name;
  const py::list* list;
};

// Everything is checked before anything is written.
void run(Update update, const Named& params, const py::object& task_grads,
         const at::Tensor& weights, const std::vector<Named>& states, const py::list* steps,
         bool steps_on_device, const std::optional<at::Tensor>& lr_tensor,
         const std::optional<at::Tensor>& scale) {
  Plan& plan = thread_plan();
  const Release release{plan};
  plan.read(task_grads.ptr());
  const at::Tensor factors_of_tasks = check_weights(weights, plan);
  const c10::NoGradGuard no_grad;
  if (scale) {
    check_tensor(*scale, "scale", at::kDouble, {}, plan.device);
    update.scale_at = scale->const_data_ptr<double>();
  }
  at::Tensor lr;
  if (lr_tensor) {
    check_plain(*lr_tensor, "lr", plan.device);
    if (lr_tensor->numel() != 1)
      throw py::value_error("lr: expected one number, found " + c10::str(lr_tensor->sizes()));
    lr = lr_tensor->resolve_neg().to(at::kDouble);
    update.lr_at = lr.const_data_ptr<double>();
  }

  std::vector<Named> lists = {params};
  lists.insert(lists.end(), states.begin(), states.end());
  std::vector<Targets> targets(lists.size(), Targets(plan.num_tensors));
  for (size_t i = 0; i < lists.size(); ++i) {
    check_length(lists[i].name, *lists[i].list, plan.num_tensors);
    for (int64_t t = 0; t < plan.num_tensors; ++t) {
      if (plan.like[t] == nullptr) continue;
      const Name name{lists[i].name, t, ""};
      const at::Tensor& tensor = tensor_at(*lists[i].list, name);
      check_target(tensor, *plan.like[t], name);
      targets[i].set(t, tensor, *plan.like[t]);
    }
  }
  Steps counted(steps, plan, steps_on_device);
  for (Targets& target : targets) target.fetch();
  counted.advance();
  const double* const given = factors_of_tasks.const_data_ptr<double>();
  if (cuda::is_ours(plan.device)) {
    std::vector<const std::vector<void*>*> pointers;
    for (const Targets& target : targets) pointers.push_back(&target.data);
    cuda::update(plan, given, update, pointers, counted.counts());
  } else {
    std::vector<UpdateFactors<double>> factors(static_cast<size_t>(plan.num_tensors));
    std::vector<void*> pointers(static_cast<size_t>(plan.num_tensors) * kMaxUpdateStates, nullptr);
    for (int64_t t = 0; t < plan.num_tensors; ++t) {
      if (plan.like[t] == nullptr) continue;
      factors[t] = update_factors<double>(update, counted.count(t));
      for (size_t s = 0; s < states.size(); ++s)
        pointers[t * kMaxUpdateStates + s] = targets[s + 1].data[t];
    }
    run_unlocked(plan, task_grads, [&] {
      cpu::update(plan, given, update.rule, factors, targets[0].data, pointers);
    });
  }
  for (Targets& target : targets) target.finish();
}

void sgd(const py::list& params, const py::object& task_grads, const at::Tensor& weights,
         const std::optional<py::list>& momentum_buffers, double lr,
         const std::optional<at::Tensor>& lr_tensor, double momentum, double dampening,
         double weight_decay, bool nesterov, bool maximize, bool first,
         const std::optional<at::Tensor>& scale) {
  Update update = {};
  update.rule = momentum_buffers ? kSgdMomentum : kSgd;
  update.maximize = maximize;
  update.nesterov = nesterov;
  update.first = first;
  update.lr = lr;
  update.weight_decay = weight_decay;
  update.momentum = momentum;
  update.dampening = dampening;
  std::vector<Named> states;
  if (momentum_buffers) states.push_back({"momentum_buffers", &*momentum_buffers});
  run(update, {"params", &params}, task_grads, weights, states, nullptr, false, lr_tensor, scale);
}

void adam(const py::list& params, const py::object& task_grads, const at::Tensor& weights,
          const py::list& exp_avgs, const py::list& exp_avg_sqs,
          const std::optional<py::list>& max_exp_avg_sqs, const py::list& steps, double lr,
          const std::optional<at::Tensor>& lr_tensor, double beta1, double beta2, double eps,
          double weight_decay, bool decoupled, bool maximize, bool capturable,
          const std::optional<at::Tensor>& scale) {
  Update update = {};
  update.rule = max_exp_avg_sqs ? kAdamMax : kAdam;
  update.maximize = maximize;
  update.decoupled = decoupled;
  update.lr = lr;
  update.weight_decay = weight_decay;
  update.beta1 = beta1;
  update.beta2 = beta2;
  update.eps = eps;
  std::vector<Named> states = {{"exp_avgs", &exp_avgs}, {"exp_avg_sqs", &exp_avg_sqs}};
  if (max_exp_avg_sqs) states.push_back({"max_exp_avg_sqs", &*max_exp_avg_sqs});
  run(update, {"params", &params}, task_grads, weights, states, &steps, capturable, lr_tensor,
      scale);
}

}  // namespace

void define_fused(py::module_& module) {
  module.def("fused_sgd", &sgd, py::arg("params"), py::arg("task_grads"), py::arg("weights"),
             py::arg("momentum_buffers"), py::arg("lr"), py::arg("lr_tensor"), py::arg("momentum"),
             py::arg("dampening"), py::arg("weight_decay"), py::arg("nesterov"),
             py::arg("maximize"), py::arg("first"), py::arg("scale"));
  module.def("fused_adam", &adam, py::arg("params"), py::arg("task_grads"), py::arg("weights"),
             py::arg("exp_avgs"), py::arg("exp_avg_sqs"), py::arg("max_exp_avg_sqs"),
             py::arg("steps"), py::arg("lr"), py::arg("lr_tensor"), py::arg("beta1"),
             py::arg("beta2"), py::arg("eps"), py::arg("weight_decay"), py::arg("decoupled"),
             py::arg("maximize"), py::arg("capturable"), py::arg("scale"));
}

}  // namespace mtlfast
