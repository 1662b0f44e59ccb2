// A GPU made of fibers: what CUDA has built in, for kernel text that g++ compiles and the CPU runs.
//
// Every thread of a block is a fiber that runs until it has to wait for others, in a chosen order: a missing barrier
// then shows in one order or another. Shared memory starts as NaN in every block.
#pragma once

#include <math.h>
#include <stdint.h>
#include <string.h>

#include <vector>

#define MTLFAST_FIBERS

namespace shim {

struct Index {
  unsigned x;
  unsigned y;
  unsigned z;
};

const Index& thread_index();
const Index& block_index();
const Index& block_size();
const Index& grid_size();

void sync_threads(const char* file, int line);
void sync_warp(unsigned mask, const char* file, int line);

// Hands `mine` to the other lanes and returns what every lane of the warp brought; all lanes of the mask take part.
const uint64_t* exchange(unsigned mask, uint64_t mine);

void* dynamic_shared();

class SharedBase {
 public:
  SharedBase(void* data, size_t bytes);
};
template <class Type, int kCount>
struct Shared {
  alignas(16) unsigned char bytes[sizeof(Type) * kCount];
  SharedBase base{bytes, sizeof(bytes)};
  Type* data() { return reinterpret_cast<Type*>(bytes); }
};

struct Registered {
  Registered(const char* name, void (*run)(const void* params));
};

template <class Value>
Value shuffle(unsigned mask, Value value, unsigned source) {
  static_assert(sizeof(Value) <= 8);
  uint64_t bits = 0;
  memcpy(&bits, &value, sizeof(Value));
  const uint64_t* all = exchange(mask, bits);
  Value result;
  memcpy(&result, all + source % 32, sizeof(Value));
  return result;
}

template <class To, class From>
To bits_as(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  memcpy(&to, &from, sizeof(To));
  return to;
}

inline unsigned lane() { return thread_index().x % 32; }

}  // namespace shim

#define __global__
#define __device__
#define __forceinline__ inline
#define __noinline__ __attribute__((noinline))
#define __launch_bounds__(...)

#define threadIdx (::shim::thread_index())
#define blockIdx (::shim::block_index())
#define blockDim (::shim::block_size())
#define gridDim (::shim::grid_size())
#define __syncthreads() ::shim::sync_threads(__FILE__, __LINE__)
#define __syncwarp(mask) ::shim::sync_warp(mask, __FILE__, __LINE__)

template <class Value>
Value __shfl_sync(unsigned mask, Value value, int source) {
  return ::shim::shuffle(mask, value, static_cast<unsigned>(source));
}
template <class Value>
Value __shfl_xor_sync(unsigned mask, Value value, int step) {
  return ::shim::shuffle(mask, value, ::shim::lane() ^ static_cast<unsigned>(step));
}
template <class Value>
Value __shfl_down_sync(unsigned mask, Value value, unsigned step) {
  const unsigned source = ::shim::lane() + step;
  return ::shim::shuffle(mask, value, source < 32 ? source : ::shim::lane());
}

inline unsigned __ballot_sync(unsigned mask, int condition) {
  const uint64_t* all = ::shim::exchange(mask, condition != 0);
  unsigned ballot = 0;
  for (unsigned i = 0; i < 32; ++i) {
    if ((mask >> i & 1u) != 0 && all[i] != 0) ballot |= 1u << i;
  }
  return ballot;
}
inline int __any_sync(unsigned mask, int condition) { return __ballot_sync(mask, condition) != 0; }
inline int __all_sync(unsigned mask, int condition) {
  return __ballot_sync(mask, condition) == mask;
}

inline void __threadfence() {}
inline unsigned atomicInc(unsigned* address, unsigned limit) {
  const unsigned before = *address;
  *address = before >= limit ? 0 : before + 1;
  return before;
}

inline float __uint_as_float(unsigned bits) { return ::shim::bits_as<float>(bits); }
inline unsigned __float_as_uint(float value) { return ::shim::bits_as<unsigned>(value); }
inline double __hiloint2double(int high, int low) {
  const uint64_t bits =
      static_cast<uint64_t>(static_cast<unsigned>(high)) << 32 | static_cast<unsigned>(low);
  return ::shim::bits_as<double>(bits);
}

#define MTLFAST_KERNEL(name, threads, blocks, Params, ...) \
  static const ::shim::Registered registered_##name(       \
      #name, [](const void* params) { __VA_ARGS__(*static_cast<const Params*>(params)); });
#define MTLFAST_SHARED(Type, name, count)              \
  static ::shim::Shared<Type, (count)> name##_storage; \
  Type* const name = name##_storage.data()
#define MTLFAST_DYNAMIC_SHARED(name) \
  unsigned char* const name = static_cast<unsigned char*>(::shim::dynamic_shared())
