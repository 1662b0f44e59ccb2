// Scratch of each lane's own, where lanes work on different tasks: entry k of the array of lane l
// is [k * stride + l]. The stride is odd, so that lanes at different entries meet in few banks; for
// a single thread it is 1, a plain array.
#pragma once

#include "solver.h"

namespace mtlfast {

constexpr int64 kLargestStride = 33;  // for workspace(K)

MTLFAST_HD int lane_stride(Lanes lanes) { return lanes.count() | 1; }

}  // namespace mtlfast
