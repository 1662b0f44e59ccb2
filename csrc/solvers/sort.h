// Ascending order in place: Shell's method, whose gaps need no table and no recursion.
#pragma once

#include "solver.h"

namespace mtlfast {

// The values stand `stride` apart.
MTLFAST_HD void sort_ascending(double* values, int count, int stride = 1) {
  int gap = 1;
  while (gap < count / 3) gap = 3 * gap + 1;
  for (; gap > 0; gap /= 3) {
    for (int i = gap; i < count; ++i) {
      const double value = values[i * stride];
      int hole = i;
      for (; hole >= gap && values[(hole - gap) * stride] > value; hole -= gap) {
        values[hole * stride] = values[(hole - gap) * stride];
      }
      values[hole * stride] = value;
    }
  }
}

}  // namespace mtlfast
