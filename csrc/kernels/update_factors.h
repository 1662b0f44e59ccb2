// From the options of a parameter group and a tensor's count of steps to the factors of its update. The including file
// provides <math.h>.
#pragma once

#include "update.h"

namespace mtlfast {

// count: the tensor's steps, this one included; read by Adam only.
template <class Scalar>
MTLFAST_HD UpdateFactors<Scalar> update_factors(const Update& update, double count) {
  const double lr = update.lr_at == nullptr ? update.lr : *update.lr_at;
  const double scale = update.scale_at == nullptr ? 1.0 : *update.scale_at;
  UpdateFactors<Scalar> factors = {};
  factors.gradient = static_cast<Scalar>(update.maximize ? -scale : scale);
  factors.decay = static_cast<Scalar>(update.decoupled ? 0.0 : update.weight_decay);
  factors.shrink = static_cast<Scalar>(update.decoupled ? 1.0 - lr * update.weight_decay : 1.0);
  factors.step = static_cast<Scalar>(lr);
  factors.first = update.first;
  factors.nesterov = update.nesterov;
  if (update.rule == kSgd || update.rule == kSgdMomentum) {
    factors.keep1 = static_cast<Scalar>(update.momentum);
    factors.take1 = static_cast<Scalar>(1.0 - update.dampening);
    return factors;
  }
  factors.keep1 = static_cast<Scalar>(update.beta1);
  factors.take1 = static_cast<Scalar>(1.0 - update.beta1);
  factors.keep2 = static_cast<Scalar>(update.beta2);
  factors.take2 = static_cast<Scalar>(1.0 - update.beta2);
  factors.root = static_cast<Scalar>(1.0 / sqrt(1.0 - pow(update.beta2, count)));
  factors.eps = static_cast<Scalar>(update.eps);
  factors.step = static_cast<Scalar>(lr / (1.0 - pow(update.beta1, count)));
  return factors;
}

}  // namespace mtlfast
