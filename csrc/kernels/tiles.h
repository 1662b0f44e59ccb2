// Tiles of the Gramian, and what a step along the columns adds to them.
//
// float32 is split in two tf32 numbers, x = high + low; high high + high low + low high leaves an error of 4e-8. Tensor
// cores do not round but cut off what they add, which always makes a sum of squares smaller: by 1e-6 after 16 additions.
// So each step along the columns starts from zero, is cut off once where it matters (small products come first), and is
// added in float32 with rounding: at most 2 kStepsPerLane of those make one sum before it moves on to float64. All told
// squares come out 1e-7 to 2e-7 too small, by a model of the tensor cores of sm_80 and sm_90 that cuts off what lies
// under the last 1 or 2 bits of the largest term.
#pragma once

#include "mma.h"
#include "params.h"

namespace mtlfast {

// Which tiles a block has: rows in groups [0, kLeft), columns in groups [kFirstRight, kGroups), without what is wholly
// under the diagonal.
template <int kRowGroups>
struct Triangle {
  static constexpr int kGroups = kRowGroups;
  static constexpr int kLeft = kRowGroups;
  static constexpr int kFirstRight = 0;
};
struct Pair {
  static constexpr int kGroups = 2 * kPairGroups;
  static constexpr int kLeft = kPairGroups;
  static constexpr int kFirstRight = kPairGroups;
};

// Where a block's rows lie among the tasks: those of the first kPairGroups groups, and the others.
struct Section {
  int left;
  int right;

  MTLFAST_DEVICE int task(int row) const {
    return row < kPairRows ? left + row : right + row - kPairRows;
  }
};

// The sums of a block. Sum number 32 e + lane is the lane's entry e: number e % (2 height) of tile e / (2 height).
template <class Sum, class Shape>
struct Tiles {
  static constexpr int kHeight = tile_height(sizeof(Sum) == 8);  // groups
  static constexpr int kPerTile = 2 * kHeight;  // entries that a lane has of one tile
  static constexpr int kSums =
      Shape::kFirstRight == 0 ? triangle_sums(Shape::kGroups, kHeight) : pair_sums();
  static constexpr int kEntries = kSums / kWarp;

  // Calls visit(tile, i, j) with the groups where each tile begins.
  template <class Visit>
  static MTLFAST_DEVICE void for_each(Visit visit) {
    int tile = 0;
#pragma unroll
    for (int i = 0; i < Shape::kLeft; i += kHeight) {
#pragma unroll
      for (int j = i < Shape::kFirstRight ? Shape::kFirstRight : i; j < Shape::kGroups; ++j) {
        visit(tile++, i, j);
      }
    }
  }

  // Row and column of a sum.
  static MTLFAST_DEVICE void find(int sum, int* row, int* column) {
    const int lane = sum % kWarp;
    const int entry = sum / kWarp % kPerTile;
    int tile = sum / kWarp / kPerTile;
    int i = 0;
    int j = 0;
    for (;; i += kHeight) {
      j = i < Shape::kFirstRight ? Shape::kFirstRight : i;
      if (tile < Shape::kGroups - j) break;
      tile -= Shape::kGroups - j;
    }
    *row = 8 * (i + entry / 2) + lane / 4;
    *column = 8 * (j + tile) + 2 * (lane % 4) + entry % 2;
  }
};

// What one packet of each group's row adds to the sums.
template <class T, class Sum, class Shape>
struct Product {
  static MTLFAST_DEVICE void add(const Packet* x, float* sums) {
    constexpr int kLast = Shape::kGroups - 1;
#pragma unroll
    for (int first = 0; first < 4; first += 2) {
      Tiles<float, Shape>::for_each([&](int tile, int i, int j) {
        const uint32* top = x[i].words + first;
        // The lower half of a tile at the end is nobody's.
        const uint32* bottom = x[i < kLast ? i + 1 : i].words + first;
        const uint32 a[4] = {top[0], bottom[0], top[1], bottom[1]};
        const uint32 b[2] = {x[j].words[first], x[j].words[first + 1]};
        const float zero[4] = {0.0f, 0.0f, 0.0f, 0.0f};
        float part[4];
        mma_16<T>(part, a, b, zero);
#pragma unroll
        for (int e = 0; e < 4; ++e) sums[4 * tile + e] += part[e];
      });
    }
  }
};

// x = high + low. Rounded, so that the sign of `low` is no function of that of x: then low low, which is left out, and
// what the tensor core does not read of `low` cancel out over the columns.
MTLFAST_DEVICE void split(uint32 bits, uint32 half, uint32* high, uint32* low) {
  *high = (bits + half) & 0xffffe000u;
  *low = __float_as_uint(__uint_as_float(bits) - __uint_as_float(*high));
}

template <class Shape>
struct Product<float, float, Shape> {
  static MTLFAST_DEVICE void add(const Packet* x, float* sums) {
    constexpr int kGroups = Shape::kGroups;
    constexpr int kLast = kGroups - 1;
#pragma unroll
    for (int first = 0; first < 4; first += 2) {
      // The fragments of A and of B want their registers in different orders. Rounding what is half-way differently
      // keeps the compiler from sharing the numbers, which would take two to three moves for each instruction.
      uint32 a_high[kGroups][4];
      uint32 a_low[kGroups][4];
      uint32 b_high[kGroups][2];
      uint32 b_low[kGroups][2];
#pragma unroll
      for (int r = 0; r < kGroups; ++r) {
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          split(x[r].words[first + e], 0x1000u, &b_high[r][e], &b_low[r][e]);
        }
      }
#pragma unroll
      for (int i = 0; i < Shape::kLeft; i += 2) {
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          const int r = i < kLast ? i + e % 2 : i;
          split(x[r].words[first + e / 2], 0x0fffu, &a_high[i][e], &a_low[i][e]);
        }
      }
      Tiles<float, Shape>::for_each([&](int tile, int i, int j) {
        const float zero[4] = {0.0f, 0.0f, 0.0f, 0.0f};
        float small[4];
        float smaller[4];
        float part[4];
        mma_tf32(smaller, a_high[i], b_low[j], zero);
        mma_tf32(small, a_low[i], b_high[j], smaller);
        mma_tf32(part, a_high[i], b_high[j], small);
#pragma unroll
        for (int e = 0; e < 4; ++e) sums[4 * tile + e] += part[e];
      });
    }
  }
};

// In float64, where the products of narrower numbers are exact.
template <class T, class Shape>
struct Product<T, double, Shape> {
  static MTLFAST_DEVICE void add(const Packet* x, double* sums) {
    constexpr int kGroups = Shape::kGroups;
#pragma unroll
    for (int e = 0; e < Vector<T>::kCount; ++e) {
      double column[kGroups];
#pragma unroll
      for (int r = 0; r < kGroups; ++r) column[r] = element<T>(x[r], e);
      Tiles<double, Shape>::for_each([&](int tile, int i, int j) {
        double pair[2] = {sums[2 * tile], sums[2 * tile + 1]};
        mma_f64(pair, column[i], column[j]);
        sums[2 * tile] = pair[0];
        sums[2 * tile + 1] = pair[1];
      });
    }
  }
};

}  // namespace mtlfast
