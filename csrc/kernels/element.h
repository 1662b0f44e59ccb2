// Elements of the gradients: how they are loaded, widened and rounded.
//
// bfloat16 and float16 are 16-bit patterns here, because their CUDA types come with headers.
#pragma once

#include "target.h"

namespace mtlfast {

struct BFloat16 {
  uint16 bits;
};
struct Float16 {
  uint16 bits;
};

MTLFAST_DEVICE float widen(float x) { return x; }
MTLFAST_DEVICE double widen(double x) { return x; }
MTLFAST_DEVICE float widen(BFloat16 x) {
  return __uint_as_float(static_cast<uint32>(x.bits) << 16);
}
MTLFAST_DEVICE float widen(Float16 x) {
#if defined(__CUDA_ARCH__)
  float wide;
  asm("cvt.f32.f16 %0, %1;" : "=f"(wide) : "h"(x.bits));
  return wide;
#else
  const uint32 sign = static_cast<uint32>(x.bits & 0x8000u) << 16;
  const uint32 magnitude = x.bits & 0x7fffu;
  if (magnitude >= 0x7c00u) return __uint_as_float(sign | 0x7f800000u | (magnitude & 0x3ffu) << 13);
  // The exponents differ by 112: multiplying by 2^112 is exact and takes care of subnormal numbers.
  const float value = __uint_as_float(magnitude << 13) * 5.192296858534828e33f;
  return __uint_as_float(__float_as_uint(value) | sign);
#endif
}

// Rounded to nearest even, from float64 by way of float32 as torch does.
template <class T>
MTLFAST_DEVICE T narrow(double x);
template <>
MTLFAST_DEVICE double narrow<double>(double x) {
  return x;
}
template <>
MTLFAST_DEVICE float narrow<float>(double x) {
  return static_cast<float>(x);
}
template <>
MTLFAST_DEVICE BFloat16 narrow<BFloat16>(double x) {
  const uint32 bits = __float_as_uint(static_cast<float>(x));
  if ((bits & 0x7fffffffu) > 0x7f800000u) return {0x7fc0};
  return {static_cast<uint16>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16)};
}
template <>
MTLFAST_DEVICE Float16 narrow<Float16>(double x) {
#if defined(__CUDA_ARCH__)
  Float16 half;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(half.bits) : "f"(static_cast<float>(x)));
  return half;
#else
  const uint32 bits = __float_as_uint(static_cast<float>(x));
  const uint16 sign = static_cast<uint16>((bits >> 16) & 0x8000u);
  const uint32 magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return {static_cast<uint16>(sign | 0x7fffu)};
  if (magnitude >= 0x477ff000u) return {static_cast<uint16>(sign | 0x7c00u)};
  if (magnitude <
      0x38800000u) {  // subnormal: adding 1/2 leaves the rounded multiple of 2^-24 in the low bits
    const float shifted = __uint_as_float(magnitude) + 0.5f;
    return {static_cast<uint16>(sign | (__float_as_uint(shifted) - 0x3f000000u))};
  }
  const uint32 rounded = magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13) & 1u);
  return {static_cast<uint16>(sign | (rounded >> 13))};
#endif
}

// 16 bytes: what a thread loads and stores at once.
struct alignas(16) Packet {
  uint32 words[4];
};

template <class T>
struct Vector {
  static constexpr int kCount = 16 / static_cast<int>(sizeof(T));
};

// Element i of a packet, widened; i is a constant once the loop over it is unrolled.
template <class T>
MTLFAST_DEVICE auto element(const Packet& packet, int i);
template <>
MTLFAST_DEVICE auto element<float>(const Packet& packet, int i) {
  return __uint_as_float(packet.words[i]);
}
template <>
MTLFAST_DEVICE auto element<double>(const Packet& packet, int i) {
  return __hiloint2double(static_cast<int>(packet.words[2 * i + 1]),
                          static_cast<int>(packet.words[2 * i]));
}
template <>
MTLFAST_DEVICE auto element<BFloat16>(const Packet& packet, int i) {
  const uint32 word = packet.words[i / 2];
  return __uint_as_float(i % 2 == 0 ? word << 16 : word & 0xffff0000u);
}
template <>
MTLFAST_DEVICE auto element<Float16>(const Packet& packet, int i) {
  const uint32 word = packet.words[i / 2];
  return widen(Float16{static_cast<uint16>(i % 2 == 0 ? word : word >> 16)});
}

template <class T>
MTLFAST_DEVICE Packet pack(const double* values) {
  union {
    Packet packet;
    T elements[Vector<T>::kCount];
  } both;
#pragma unroll
  for (int i = 0; i < Vector<T>::kCount; ++i) both.elements[i] = narrow<T>(values[i]);
  return both.packet;
}

// A single element in place of the first of a packet.
template <class T>
MTLFAST_DEVICE Packet load_single(const T* address) {
  union {
    Packet packet;
    T elements[Vector<T>::kCount];
  } both = {{{0, 0, 0, 0}}};
  both.elements[0] = *address;
  return both.packet;
}

// Read once: past the L1 cache.
MTLFAST_DEVICE Packet load_packet(const void* address) {
#if defined(__CUDA_ARCH__)
  Packet packet;
  asm volatile("ld.global.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(packet.words[0]), "=r"(packet.words[1]), "=r"(packet.words[2]),
                 "=r"(packet.words[3])
               : "l"(address));
  return packet;
#else
  return *static_cast<const Packet*>(address);
#endif
}

// The same, or zeros where there is nothing: without a branch, because the lanes of a warp differ.
MTLFAST_DEVICE Packet load_packet_if(bool there, const void* address) {
#if defined(__CUDA_ARCH__)
  Packet packet;
  asm volatile(
      "{\n"
      ".reg .pred there;\n"
      "setp.ne.s32 there, %5, 0;\n"
      "mov.b32 %0, 0;\n"
      "mov.b32 %1, 0;\n"
      "mov.b32 %2, 0;\n"
      "mov.b32 %3, 0;\n"
      "@there ld.global.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];\n"
      "}"
      : "=&r"(packet.words[0]), "=&r"(packet.words[1]), "=&r"(packet.words[2]),
        "=&r"(packet.words[3])
      : "l"(address), "r"(static_cast<int>(there)));
  return packet;
#else
  return there ? load_packet(address) : Packet{{0, 0, 0, 0}};
#endif
}

MTLFAST_DEVICE void store_packet(void* address, const Packet& packet) {
  *static_cast<Packet*>(address) = packet;
}

}  // namespace mtlfast
