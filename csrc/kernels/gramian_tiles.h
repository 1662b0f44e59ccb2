// The Gramian of more tasks than one thread can hold the triangle of: by tensor cores, out of registers.
//
// Both operands of every product are rows of the same gradients, and the order of the columns is free (see mma.h). So
// lane 4 g + t loads 16 bytes of the rows g, g + 8, g + 16, ... straight from memory, and these registers are the
// fragments of both operands: nothing is staged in shared memory, and warps do not wait for each other.
//
// What to expect of an H200, never measured: it copies 18.6 bytes per cycle and multiprocessor, and warp-level tensor
// core instructions reach about 0.62 m16n8k8 (tf32) or m16n8k16 (16 bits) per cycle. Of the time that reading takes,
// from the instructions of the compiled loop:
//            tensor cores  issue slots  in flight
//   f32  k16     35 %         52 %        32 KB
//   f32  k32     53 %         62 %        24 KB
//   f32  k40     63 %         71 %        30 KB
//   f32  k64     88 %         77 %        32 KB
//   bf16 k16     12 %         52 %        40 KB
//   bf16 k64     30 %         73 %        32 KB
// About 20 KB in flight hide a latency of 1000 cycles. So reading should bind, but for k64 in float32.
#pragma once

#include "gramian.h"
#include "team_sum.h"
#include "tiles.h"

namespace mtlfast {

// What this warp reads of one chunk: steps of kColumns columns, every kWarps-th one. Columns are counted from the
// beginning of the chunk.
template <class T, class Shape>
struct Stripe {
  static constexpr int kGroups = Shape::kGroups;
  static constexpr int kCount = Vector<T>::kCount;
  static constexpr int kPackets = kGroups <= 3 ? 2 : 1;  // of a row, that are loaded together
  static constexpr int kColumns = kPackets * 4 * kCount;
  static constexpr int kStep = kTileThreads / kWarp * kColumns;

  const T* rows[kGroups];  // from this lane's first column on
  uint32 there;            // bit r: whether there is a row
  int columns;
  int in_packets;  // columns that may be loaded in packets

  // Returns whether the warp has any row.
  MTLFAST_DEVICE bool read(const Table& table, int tensor, const Section& section, int num_tasks,
                           int64 begin, int64 end) {
    const int lane = static_cast<int>(threadIdx.x) % kWarp;
    there = 0;
#pragma unroll
    for (int r = 0; r < kGroups; ++r) {
      const int task = section.task(8 * r + lane / 4);
      const T* row = task < num_tasks ? table.pointer<const T>(tensor, task) : nullptr;
      if (row != nullptr) there |= 1u << r;
      rows[r] = row + begin + lane % 4 * kCount;
    }
    columns = static_cast<int>(end - begin);
    in_packets = table.aligned(tensor) ? columns : 0;
    return __any_sync(kAllLanes, there != 0) != 0;
  }

  static MTLFAST_DEVICE int first_column() {
    return static_cast<int>(threadIdx.x) / kWarp * kColumns;
  }

  // This lane's packets of the step at `column`: packet u begins (4 u + lane % 4) kCount columns from there.
  MTLFAST_DEVICE void load(int column, Packet (&packets)[kPackets][kGroups]) const {
    if (column + kColumns <= in_packets) {
      for_each_packet([&](int u, int r) {
        packets[u][r] = load_packet_if((there >> r & 1u) != 0, rows[r] + column + 4 * u * kCount);
      });
    } else {
      for_each_packet(
          [&](int u, int r) { packets[u][r] = load_elements(r, column + 4 * u * kCount); });
    }
  }

  template <class Visit>
  static MTLFAST_DEVICE void for_each_packet(Visit visit) {
#pragma unroll
    for (int u = 0; u < kPackets; ++u) {
#pragma unroll
      for (int r = 0; r < kGroups; ++r) visit(u, r);
    }
  }

  MTLFAST_DEVICE Packet load_elements(int r, int column) const {
    union {
      Packet packet;
      T values[kCount];
    } both;
    both.packet = Packet{{0, 0, 0, 0}};
    const int left = columns - column - static_cast<int>(threadIdx.x) % 4 * kCount;
#pragma unroll
    for (int e = 0; e < kCount; ++e) {
      if ((there >> r & 1u) != 0 && e < left) both.values[e] = rows[r][column + e];
    }
    return both.packet;
  }

  // Calls visit(packets), by all lanes of the warp, for each step; the next one is on its way meanwhile.
  template <class Visit>
  MTLFAST_DEVICE void for_each_step(Visit visit) const {
    int column = first_column();
    if (column >= columns) return;
    Packet next[kPackets][kGroups];
    load(column, next);
    for (; column < columns; column += kStep) {
      Packet now[kPackets][kGroups];
      for_each_packet([&](int u, int r) { now[u][r] = next[u][r]; });
      if (column + kStep < columns) load(column + kStep, next);
#pragma unroll
      for (int u = 0; u < kPackets; ++u) visit(now[u]);
    }
  }
};

// Adds this warp's share of one chunk product by product in float64, as in gramian.h: each lane its own entries.
template <class T, class Sum, class Shape, class Params>
MTLFAST_DEVICE void add_tiles_exactly(const Params& params, Section section, int tensor,
                                      int64 begin, int columns, double* own) {
  typedef Stripe<T, Shape> Columns;
  const Table table(params.table);
  for (int entry = 0; entry < Tiles<Sum, Shape>::kEntries; ++entry) {
    int row = 0;
    int column = 0;
    Tiles<Sum, Shape>::find(kWarp * entry + static_cast<int>(threadIdx.x) % kWarp, &row, &column);
    const int i = section.task(row);
    const int j = section.task(column);
    if (i > j || j >= params.num_tasks) continue;
    const T* left = table.pointer<const T>(tensor, i);
    const T* right = table.pointer<const T>(tensor, j);
    if (left == nullptr || right == nullptr) continue;
    double sum = 0.0;
    for (int step = Columns::first_column(); step < columns; step += Columns::kStep) {
      for (int at = step; at < step + Columns::kColumns && at < columns; ++at) {
        sum += static_cast<double>(widen(left[begin + at])) *
               static_cast<double>(widen(right[begin + at]));
      }
    }
    own[kWarp * entry] += sum;
  }
}

template <class T, class Sum, class Shape, class Params>
MTLFAST_DEVICE void gramian_section(const Params& params, const Section& section,
                                    const Team& team) {
  typedef Tiles<Sum, Shape> Tile;
  constexpr int kGroups = Shape::kGroups;
  constexpr int kWarps = kTileThreads / kWarp;
  MTLFAST_DYNAMIC_SHARED(memory);
  double* totals = reinterpret_cast<double*>(memory);
  const Table table(params.table);
  double* own = totals + threadIdx.x / kWarp * Tile::kSums + threadIdx.x % kWarp;
  for (int entry = 0; entry < Tile::kEntries; ++entry) own[kWarp * entry] = 0.0;

  const auto visit = [&](int tensor, int64 begin, int64 end) {
    Stripe<T, Shape> stripe;
    if (!stripe.read(table, tensor, section, params.num_tasks, begin, end)) return;
    Sum sums[Tile::kEntries];
    float largest[kGroups];
#pragma unroll
    for (int entry = 0; entry < Tile::kEntries; ++entry) sums[entry] = 0;
#pragma unroll
    for (int r = 0; r < kGroups; ++r) largest[r] = 0.0f;
    stripe.for_each_step([&](const Packet* x) {
      if constexpr (Guard<T, Sum>::kNeeded) {
#pragma unroll
        for (int r = 0; r < kGroups; ++r) {
#pragma unroll
          for (int e = 0; e < Vector<T>::kCount; ++e) {
            largest[r] = fmaxf(largest[r], fabsf(element<T>(x[r], e)));
          }
        }
      }
      Product<T, Sum, Shape>::add(x, sums);
    });

    bool unsafe = false;
#pragma unroll
    for (int r = 0; r < kGroups; ++r) {
      unsafe = unsafe || (largest[r] > 0.0f && largest[r] < kSmallestSafe);
    }
#pragma unroll
    for (int entry = 0; entry < Tile::kEntries; ++entry) {
      unsafe = unsafe || !is_safe(sums[entry]);
    }
    if (__any_sync(kAllLanes, unsafe) != 0) {
      return add_tiles_exactly<T, Sum, Shape>(params, section, tensor, begin, stripe.columns, own);
    }
#pragma unroll
    for (int entry = 0; entry < Tile::kEntries; ++entry) own[kWarp * entry] += sums[entry];
  };
  for_each_chunk(table, params.table.num_chunks, static_cast<uint32>(team.member),
                 static_cast<uint32>(team.members), visit);

  finish_team_sums(params.sums, team, totals, kWarps, Tile::kSums, [&](int sum, double total) {
    int row = 0;
    int column = 0;
    Tile::find(sum, &row, &column);
    const int i = section.task(row);
    const int j = section.task(column);
    if (i > j || j >= params.num_tasks) return;  // of both halves of G only one; and what fills up
    double* upper = params.out + static_cast<int64>(i) * params.num_tasks + j;
    if (params.accumulate) total += *upper;
    *upper = total;
    params.out[static_cast<int64>(j) * params.num_tasks + i] = total;
  });
}

// Up to 8 kGroups tasks: every block has all of them, and some of the columns.
template <class T, class Sum, int kGroups, class Params>
MTLFAST_DEVICE void gramian_triangle(const Params& params) {
  gramian_section<T, Sum, Triangle<kGroups>>(params, Section{0, kPairRows},
                                             Team{0, blockIdx.x, gridDim.x});
}

// Any number of tasks: a team of blocks for each pair of kPairRows and kPairRows tasks. Blocks that run at the same time
// work on the same columns, so that rows that belong to many pairs come from the L2 cache.
template <class T, class Sum, class Params>
MTLFAST_DEVICE void gramian_pairs(const Params& params) {
  const uint32 pairs = static_cast<uint32>(pairs_of(params.num_tasks));
  const int pair = static_cast<int>(blockIdx.x % pairs);
  int right = 0;  // pair = right (right + 1) / 2 + left, left <= right
  while ((right + 1) * (right + 2) / 2 <= pair) ++right;
  const int left = pair - right * (right + 1) / 2;
  gramian_section<T, Sum, Pair>(params, Section{kPairRows * left, kPairRows * right},
                                Team{pair, blockIdx.x / pairs, gridDim.x / pairs});
}

}  // namespace mtlfast
