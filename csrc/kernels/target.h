// What kernel text is written in, so that nvcc, NVRTC and g++ compile the same files.
//
// Kernels include nothing but each other and the solvers. In the tests g++ compiles them for fibers that stand for
// the threads of a GPU; what CUDA has built in then comes from a header that is included first.
#pragma once

#include "params.h"

#if !defined(MTLFAST_FIBERS)
// Every kernel takes one struct by value, in constant memory. `blocks`: how many are to fit on a multiprocessor.
#define MTLFAST_DEFINE_KERNEL(name, threads, blocks, Params, body) \
  extern "C" __global__ void __launch_bounds__(threads, blocks)    \
      name(const __grid_constant__ Params params) {                \
    body(params);                                                  \
  }
#if defined(MTLFAST_ONLY)
// Only the kernels for which -DMTLFAST_PICK_<name>=MTLFAST_PICKED is given: the comma makes MTLFAST_DEFINE_KERNEL the
// second of the arguments below, where otherwise MTLFAST_SKIP_KERNEL is.
#define MTLFAST_PICKED ,
#define MTLFAST_SKIP_KERNEL(...)
#define MTLFAST_SECOND(first, second, ...) second
#define MTLFAST_CHOOSE(...) MTLFAST_SECOND(__VA_ARGS__)
#define MTLFAST_KERNEL(name, ...)                                                  \
  MTLFAST_CHOOSE(MTLFAST_PICK_##name MTLFAST_DEFINE_KERNEL, MTLFAST_SKIP_KERNEL, ) \
  (name, __VA_ARGS__)
#else
#define MTLFAST_KERNEL(name, ...) MTLFAST_DEFINE_KERNEL(name, __VA_ARGS__)
#endif
#define MTLFAST_SHARED(Type, name, count) __shared__ Type name[count]
#define MTLFAST_DYNAMIC_SHARED(name) extern __shared__ __align__(16) unsigned char name[]
#endif

#define MTLFAST_DEVICE __device__ __forceinline__

namespace mtlfast {

constexpr int kWarp = 32;

}  // namespace mtlfast
