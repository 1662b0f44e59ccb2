// The combined gradient goes straight into an optimizer's update: one read of every row, and one read and one write of
// the parameter and of its state.
#pragma once

#include "update_factors.h"
#include "weighted_sum.h"

namespace mtlfast {

// What an update is computed in: GPUs that are sold for games are slow with float64.
template <class T>
struct UpdateScalar {
  typedef float Type;
};
template <>
struct UpdateScalar<double> {
  typedef double Type;
};

template <class Scalar>
struct ScalarMath {
  typedef Scalar Number;
  static MTLFAST_HD Scalar root(Scalar value) { return sqrt(value); }
  static MTLFAST_HD Scalar larger(Scalar a, Scalar b) { return a > b ? a : b; }
};

// Pointers of a tensor: its K rows, the parameter, the rule's states, and where steps_here is set the count of steps.
template <class T, UpdateRule kRule, class Params>
MTLFAST_DEVICE void fused_step(const Params& params) {
  typedef typename UpdateScalar<T>::Type Scalar;
  typedef ScalarMath<Scalar> Math;
  constexpr int kCount = Vector<T>::kCount;
  constexpr int kStates = num_states(kRule);
  constexpr int kTargets = 1 + kStates;
  constexpr int64 kStep = static_cast<int64>(kUpdateThreads) * kCount;
  MTLFAST_SHARED(UpdateFactors<Scalar>, shared_factors, 1);
  MTLFAST_SHARED(double, near_weights, kNearWeights);
  const Table table(params.table);
  const int num_tasks = params.num_tasks;
  const double* weights = bring_near(params.weights, num_tasks, near_weights);
  int known = -1;  // the tensor whose factors are in shared memory

  for_each_chunk(table, params.table.num_chunks, [&](int tensor, int64 begin, int64 end) {
    T* param = table.pointer<T>(tensor, num_tasks);
    if (param == nullptr) return;
    if (known < 0 || (params.steps_here && known != tensor)) {
      __syncthreads();  // the tensor before is done
      if (threadIdx.x == 0) {
        double count = params.count;
        if (params.steps_here) {
          const int place = num_tasks + kTargets;
          count = params.wide_steps
                      ? *table.pointer<const double>(tensor, place)
                      : static_cast<double>(*table.pointer<const float>(tensor, place));
        }
        shared_factors[0] = update_factors<Scalar>(params.update, count);
      }
      __syncthreads();  // the first one is for the weights, too
      known = tensor;
    }
    const UpdateFactors<Scalar> factors = shared_factors[0];
    T* targets[kTargets];
#pragma unroll
    for (int i = 0; i < kTargets; ++i) targets[i] = table.pointer<T>(tensor, num_tasks + i);
    const int64 thread = threadIdx.x;
    const int64 vector_end = begin + (table.aligned(tensor) ? (end - begin) / kCount * kCount : 0);

    for (int64 column = begin + thread * kCount; column < vector_end; column += kStep) {
      Packet before[kTargets];
#pragma unroll
      for (int i = 0; i < kTargets; ++i) before[i] = load_packet(targets[i] + column);
      double sums[kCount];
      weighted_sums<kCount, T>(table, tensor, num_tasks, weights, column, sums);
      double after[kTargets][kCount];
#pragma unroll
      for (int e = 0; e < kCount; ++e) {
        Scalar value = element<T>(before[0], e);
        Scalar states[kMaxUpdateStates] = {};
#pragma unroll
        for (int i = 0; i < kStates; ++i) states[i] = element<T>(before[i + 1], e);
        update_element<Math, kRule>(factors, static_cast<Scalar>(sums[e]), value, states);
        after[0][e] = value;
#pragma unroll
        for (int i = 0; i < kStates; ++i) after[i + 1][e] = states[i];
      }
#pragma unroll
      for (int i = 0; i < kTargets; ++i) store_packet(targets[i] + column, pack<T>(after[i]));
    }
    for (int64 column = vector_end + thread; column < end; column += kUpdateThreads) {
      double sum;
      weighted_sums<1, T>(table, tensor, num_tasks, weights, column, &sum);
      Scalar value = widen(param[column]);
      Scalar states[kMaxUpdateStates] = {};
#pragma unroll
      for (int i = 0; i < kStates; ++i) states[i] = widen(targets[i + 1][column]);
      update_element<Math, kRule>(factors, static_cast<Scalar>(sum), value, states);
      param[column] = narrow<T>(value);
#pragma unroll
      for (int i = 0; i < kStates; ++i) targets[i + 1][column] = narrow<T>(states[i]);
    }
  });
}

}  // namespace mtlfast
