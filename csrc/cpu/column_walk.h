// The order in which a kernel writes the columns of an output.
#pragma once

#include "simd.h"

namespace mtlfast {
namespace {

// Visits the columns [begin, end) of `out` once each. steps(column, end, stream) does as many whole steps as fit and
// returns the first column that is left; partial(column, count) does count <= kLanes columns. Only steps() may store
// past the cache, and only when it is told so: its first column then starts a cache line.
template <class T, class Steps, class Partial>
inline void walk_columns(const T* out, int64_t begin, int64_t end, bool stream, Steps steps,
                         Partial partial) {
  int64_t column = begin;
  // Streaming stores need an aligned target, which a tensor off its element size never reaches.
  if (stream && reinterpret_cast<uint64_t>(out) % sizeof(T) == 0) {
    // Single elements up to the next cache line.
    const uint64_t misaligned = reinterpret_cast<uint64_t>(out + column) % 64;
    int64_t head = misaligned == 0 ? 0 : static_cast<int64_t>((64 - misaligned) / sizeof(T));
    if (head > end - column) head = end - column;
    while (head > 0) {
      const int64_t count = head < kLanes ? head : kLanes;
      partial(column, count);
      column += count;
      head -= count;
    }
    column = steps(column, end, true);
    stream_fence();
  } else {
    column = steps(column, end, false);
  }
  for (; column < end; column += kLanes)
    partial(column, end - column < kLanes ? end - column : kLanes);
}

}  // namespace
}  // namespace mtlfast
