// The door that every K x K solver goes through, on the host and on the device.
//
// A solver maps the Gramian of K task gradients (and, for some, losses and its own state) to K
// weights. It allocates nothing, calls nothing but elementary functions, runs a fixed order of
// operations under fixed caps, and answers trouble with a Status instead of an exception. The
// including file provides <math.h>; nothing else is needed, so nvcc and NVRTC compile it as well.
#pragma once

#include "lanes.h"

namespace mtlfast {

constexpr double kEpsilon = 2.220446049250313e-16;  // spacing of doubles at 1
constexpr double kHuge = 1.7976931348623157e308;    // largest finite double

enum Status {
  kOk = 0,
  kDegenerate = 1,    // no unique answer exists; the method's documented fallback was returned
  kNotConverged = 2,  // an iteration cap was hit; the best point so far was returned
  kNonFinite = 3      // NaN or Inf in the input: weights are NaN, state and rng are untouched
};

struct SolveArgs {
  int num_tasks;          // K
  const double* gramian;  // [K, K] row-major, its largest diagonal entry in (1/4, 1]; or null
  double scale;           // true gradient norm: n_i = scale * sqrt(gramian[i, i])
  const double* losses;   // [K] or null
  const double* inputs;   // [K] the method's own numbers of this call, or null
  const int64* order;     // [K, K] or null
  int64* rng;             // [2] = (seed, counter) or null; a solver that draws advances the counter
  double* state;          // the solver's own state_size(K) doubles, or null
  const double* options;  // num_options doubles, listed in the solver's header
  double* weights;        // [K] out
  double* workspace;      // workspace(K) doubles
  Lanes lanes;            // who works on this problem
};

MTLFAST_HD bool is_finite(double x) { return fabs(x) <= kHuge; }

MTLFAST_HD bool all_finite(const double* values, int64 count, Lanes lanes = Lanes::single()) {
  bool finite = true;
  for (int64 i = lanes.index(); i < count && finite; i += lanes.count()) {
    finite = is_finite(values[i]);
  }
  return lanes.all(finite);
}

MTLFAST_HD int fill(double* values, int count, double value, int status,
                    Lanes lanes = Lanes::single()) {
  for (int i = lanes.index(); i < count; i += lanes.count()) values[i] = value;
  lanes.sync();
  return status;
}

// Writes gramian / scale^2 to `scaled`, with scale the power of two that brings the largest
// diagonal entry into (1/4, 1]: exact, so a solver decides the same at 1e-20 and at 1e18.
MTLFAST_HD double rescale(const double* gramian, int num_tasks, double* scaled, Lanes lanes) {
  const int64 count = static_cast<int64>(num_tasks) * num_tasks;
  double largest = 0.0;
  for (int i = lanes.index(); i < num_tasks; i += lanes.count()) {
    const double diagonal = gramian[static_cast<int64>(i) * num_tasks + i];
    if (diagonal > largest) largest = diagonal;
  }
  largest = lanes.largest(largest);
  int half_exponent = 0;
  if (largest > 0.0) {
    int exponent = 0;
    const double mantissa = frexp(largest, &exponent);
    if (mantissa == 0.5) --exponent;  // count the mantissa in (1/2, 1]
    half_exponent = (exponent + ((exponent % 2) != 0 ? 1 : 0)) / 2;
  }
  const double inverse = ldexp(1.0, -half_exponent);
  // Two factors, because inverse^2 can overflow where the products do not.
  for (int64 i = lanes.index(); i < count; i += lanes.count()) {
    scaled[i] = gramian[i] * inverse * inverse;
  }
  lanes.sync();
  return ldexp(1.0, half_exponent);
}

MTLFAST_HD bool has_finite_input(const SolveArgs& args) {
  const int64 count = static_cast<int64>(args.num_tasks) * args.num_tasks;
  return (args.gramian == nullptr || all_finite(args.gramian, count, args.lanes)) &&
         (args.losses == nullptr || all_finite(args.losses, args.num_tasks, args.lanes)) &&
         (args.inputs == nullptr || all_finite(args.inputs, args.num_tasks, args.lanes));
}

// Whether all lanes of a warp run the solver together; else its first lane runs it alone.
template <class Solver, class = void>
struct IsCollective {
  static constexpr bool value = false;
};
template <class Solver>
struct IsCollective<Solver, decltype(void(Solver::collective))> {
  static constexpr bool value = Solver::collective;
};

// Solves with a raw Gramian, or with none. `scaled` is scratch of K * K doubles. All lanes call it; the status is the
// first lane's.
template <class Solver>
MTLFAST_HD int solve(SolveArgs args, double* scaled) {
  if (!IsCollective<Solver>::value) {
    if (!args.lanes.first()) return kOk;
    args.lanes = Lanes::single();
  }
  if (!has_finite_input(args)) {
    return fill(args.weights, args.num_tasks, nan(""), kNonFinite, args.lanes);
  }
  args.scale = 1.0;
  if (args.gramian != nullptr) {
    args.scale = rescale(args.gramian, args.num_tasks, scaled, args.lanes);
    args.gramian = scaled;
  }
  return Solver::run(args);
}

}  // namespace mtlfast
