// Ascending order in place: Shell's method, whose gaps need no table and no recursion.
#pragma once

#include "solver.h"

namespace mtlfast {

MTLFAST_HD void sort_ascending(double* values, int count) {
  int gap = 1;
  while (gap < count / 3) gap = 3 * gap + 1;
  for (; gap > 0; gap /= 3) {
    for (int i = gap; i < count; ++i) {
      const double value = values[i];
      int hole = i;
      for (; hole >= gap && values[hole - gap] > value; hole -= gap) {
        values[hole] = values[hole - gap];
      }
      values[hole] = value;
    }
  }
}

}  // namespace mtlfast
