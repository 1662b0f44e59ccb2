// Memory for the kernels' intermediate results.
#pragma once

#include <cstdint>
#include <vector>

namespace mtlfast::cpu {

// At least `doubles` of them, aligned to a cache line, with anything in them; good until this thread asks again.
// Grows once per thread and stays: a fresh 256 KiB allocation would fault its pages in anew on every call.
inline double* thread_scratch(int64_t doubles) {
  thread_local std::vector<double> buffer;
  constexpr int64_t kAlignment = 64 / sizeof(double);
  if (static_cast<int64_t>(buffer.size()) < doubles + kAlignment)
    buffer.resize(static_cast<size_t>(doubles + kAlignment));
  const auto address = reinterpret_cast<uintptr_t>(buffer.data());
  return reinterpret_cast<double*>((address + 63) / 64 * 64);
}

}  // namespace mtlfast::cpu
