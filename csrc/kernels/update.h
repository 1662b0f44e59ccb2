// The updates of torch.optim.SGD, Adam and AdamW, for one element or a vector of them: what a fused step does with the
// combined gradient instead of writing it to memory.
#pragma once

#include "../solvers/lanes.h"

namespace mtlfast {

// The state tensors of a rule stand behind it, in the order in which a kernel is given them.
enum UpdateRule : int {
  kSgd = 0,          // none
  kSgdMomentum = 1,  // momentum_buffer
  kAdam = 2,         // exp_avg, exp_avg_sq
  kAdamMax = 3,      // exp_avg, exp_avg_sq, max_exp_avg_sq
  kNumUpdateRules = 4
};
constexpr int kMaxUpdateStates = 3;

constexpr MTLFAST_HD int num_states(UpdateRule rule) { return static_cast<int>(rule); }

// A parameter group's options, as the optimizer has them; update_factors.h makes the factors of a tensor's update.
struct Update {
  UpdateRule rule;
  bool maximize;
  bool nesterov;
  bool first;      // SGD: the momentum buffers hold nothing yet
  bool decoupled;  // AdamW: weight decay does not enter the gradient
  double lr;
  double weight_decay;
  double momentum;
  double dampening;
  double beta1;
  double beta2;
  double eps;
  const double* lr_at;  // where the learning rate is instead of in lr; null: it is not
  const double*
      scale_at;  // what the gradient is multiplied by, such as for a largest norm; null: 1
};

// Scalar: double, or float where a device is slow with doubles.
template <class Scalar>
struct UpdateFactors {
  Scalar gradient;  // of the combined gradient
  Scalar decay;     // of the parameter, where it is added to the gradient
  Scalar shrink;    // of the parameter itself
  Scalar keep1;     // first state: keep1 * state + take1 * gradient
  Scalar take1;
  Scalar keep2;  // second state: keep2 * state + take2 * gradient^2
  Scalar take2;
  Scalar root;  // of the square root of the second state
  Scalar eps;
  Scalar step;
  bool first;
  bool nesterov;
};

// Math has the type Number, which Scalars multiply, and the functions root() and larger(), the latter NaN where its
// second argument is. The state is in states[0] and so on.
template <class Math, UpdateRule kRule, class Scalar>
MTLFAST_HD void update_element(const UpdateFactors<Scalar>& factors, typename Math::Number gradient,
                               typename Math::Number& param, typename Math::Number* states) {
  gradient = factors.gradient * gradient;
  // Without weight decay a parameter that is not finite must not reach the gradient.
  if (factors.decay != 0) gradient += factors.decay * param;
  if constexpr (kRule == kSgd) {
    param -= factors.step * gradient;
  } else if constexpr (kRule == kSgdMomentum) {
    states[0] = factors.first ? gradient : factors.keep1 * states[0] + factors.take1 * gradient;
    param -= factors.step * (factors.nesterov ? gradient + factors.keep1 * states[0] : states[0]);
  } else {
    states[0] = factors.keep1 * states[0] + factors.take1 * gradient;
    states[1] = factors.keep2 * states[1] + factors.take2 * gradient * gradient;
    if constexpr (kRule == kAdamMax) states[2] = Math::larger(states[2], states[1]);
    const typename Math::Number second = states[num_states(kRule) - 1];
    param = factors.shrink * param -
            factors.step * states[0] / (factors.root * Math::root(second) + factors.eps);
  }
}

}  // namespace mtlfast
