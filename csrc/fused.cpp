#include "fused.h"

#include <c10/core/GradMode.h>
#include <math.h>
#include <torch/csrc/autograd/python_variable.h>

#include <optional>
#include <string>
#include <vector>

#include "kernels/update_factors.h"
#include "targets.h"

namespace mtlfast {
namespace {

// A tensor's count of steps, which the optimizer keeps in float32 or float64.
class StepCount {
 public:
  StepCount(const at::Tensor& tensor, const std::string& name, const at::Device& device)
      : tensor_(tensor) {
    check_plain(tensor, name, device);
    const at::ScalarType type = tensor.scalar_type();
    if (tensor.numel() != 1 || tensor.is_neg() || (type != at::kFloat && type != at::kDouble))
      throw py::value_error(name + ": expected one number of Float or Double, found " +
                            c10::str(tensor.sizes()) + " of " + c10::toString(type));
  }

  double value() const {
    return tensor_.scalar_type() == at::kDouble ? *tensor_.const_data_ptr<double>()
                                                : *tensor_.const_data_ptr<float>();
  }

  void advance() const {
    if (tensor_.scalar_type() == at::kDouble) {
      *tensor_.mutable_data_ptr<double>() += 1.0;
    } else {
      *tensor_.mutable_data_ptr<float>() += 1.0f;
    }
    tensor_.unsafeGetTensorImpl()->bump_version();
  }

 private:
  at::Tensor tensor_;
};

// A list of T tensors, and how messages call it.
struct Named {
  const char* name;
  const py::list* list;
};

void check_length(const Named& named, int64_t num_tensors) {
  if (static_cast<int64_t>(named.list->size()) != num_tensors)
    throw py::value_error(std::string(named.name) + ": expected " + std::to_string(num_tensors) +
                          " entries, as in task_grads[0], found " +
                          std::to_string(named.list->size()));
}

// Everything is checked before anything is written.
void run(Update update, const Named& params, const py::object& task_grads,
         const at::Tensor& weights, const std::vector<Named>& states, const py::list* steps,
         const std::optional<at::Tensor>& scale) {
  Plan& plan = thread_plan();
  const Release release{plan};
  plan.read(task_grads.ptr());
  const at::Tensor factors_of_tasks = check_weights(weights, plan);
  if (scale) {
    check_tensor(*scale, "scale", at::kDouble, {}, plan.device);
    update.scale_at = scale->const_data_ptr<double>();
  }
  const c10::NoGradGuard no_grad;

  std::vector<Named> lists = {params};
  lists.insert(lists.end(), states.begin(), states.end());
  std::vector<Targets> targets(lists.size(), Targets(plan.num_tensors));
  for (size_t i = 0; i < lists.size(); ++i) {
    check_length(lists[i], plan.num_tensors);
    for (int64_t t = 0; t < plan.num_tensors; ++t) {
      if (plan.like[t] == nullptr) continue;
      const Name name{lists[i].name, t, ""};
      const at::Tensor& tensor = tensor_at(*lists[i].list, name);
      check_target(tensor, *plan.like[t], name);
      targets[i].set(t, tensor, *plan.like[t]);
    }
  }
  std::vector<UpdateFactors<double>> factors(static_cast<size_t>(plan.num_tensors));
  std::vector<StepCount> counts;
  if (steps != nullptr) check_length({"steps", steps}, plan.num_tensors);
  for (int64_t t = 0; t < plan.num_tensors; ++t) {
    if (plan.like[t] == nullptr) continue;
    if (steps != nullptr) {
      const Name name{"steps", t, ""};
      counts.emplace_back(tensor_at(*steps, name), name, at::kCPU);
    }
    factors[t] = update_factors<double>(update, steps == nullptr ? 0.0 : counts.back().value() + 1);
  }

  std::vector<void*> state_data(static_cast<size_t>(plan.num_tensors) * kMaxUpdateStates, nullptr);
  for (size_t s = 0; s < states.size(); ++s)
    for (int64_t t = 0; t < plan.num_tensors; ++t)
      state_data[t * kMaxUpdateStates + s] = targets[s + 1].data[t];
  for (Targets& target : targets) target.fetch();
  run_unlocked(plan, task_grads, [&] {
    cpu::update(plan, factors_of_tasks.const_data_ptr<double>(), update.rule, factors,
                targets[0].data, state_data);
  });
  for (Targets& target : targets) target.finish();
  for (const StepCount& count : counts) count.advance();
}

void sgd(const py::list& params, const py::object& task_grads, const at::Tensor& weights,
         const std::optional<py::list>& momentum_buffers, double lr, double momentum,
         double dampening, double weight_decay, bool nesterov, bool maximize, bool first,
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
  run(update, {"params", &params}, task_grads, weights, states, nullptr, scale);
}

void adam(const py::list& params, const py::object& task_grads, const at::Tensor& weights,
          const py::list& exp_avgs, const py::list& exp_avg_sqs,
          const std::optional<py::list>& max_exp_avg_sqs, const py::list& steps, double lr,
          double beta1, double beta2, double eps, double weight_decay, bool decoupled,
          bool maximize, const std::optional<at::Tensor>& scale) {
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
  run(update, {"params", &params}, task_grads, weights, states, &steps, scale);
}

}  // namespace

void define_fused(py::module_& module) {
  module.def("fused_sgd", &sgd, py::arg("params"), py::arg("task_grads"), py::arg("weights"),
             py::arg("momentum_buffers"), py::arg("lr"), py::arg("momentum"), py::arg("dampening"),
             py::arg("weight_decay"), py::arg("nesterov"), py::arg("maximize"), py::arg("first"),
             py::arg("scale"));
  module.def("fused_adam", &adam, py::arg("params"), py::arg("task_grads"), py::arg("weights"),
             py::arg("exp_avgs"), py::arg("exp_avg_sqs"), py::arg("max_exp_avg_sqs"),
             py::arg("steps"), py::arg("lr"), py::arg("beta1"), py::arg("beta2"), py::arg("eps"),
             py::arg("weight_decay"), py::arg("decoupled"), py::arg("maximize"), py::arg("scale"));
}

}  // namespace mtlfast
