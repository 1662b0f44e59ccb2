// What the host hands to the kernels: one struct for each, by value.
#pragma once

#include "../solvers/lanes.h"
#include "update.h"

namespace mtlfast {

typedef unsigned int uint32;
typedef unsigned short uint16;

// ---- The tensors that a kernel walks over ------------------------------------------------------------------------

// A kernel's parameters may take 32,764 bytes, and cost less where they fit the old limit of 4 KiB.
constexpr int kSmallPayload = 3840;
constexpr int kLargePayload = 32512;

// Where the parts of a table lie. All offsets in bytes.
struct TableLayout {
  int num_tensors;   // T
  int num_pointers;  // L: pointers of each tensor, those of the K rows first

  MTLFAST_HD constexpr int64 sizes() const { return 8ll * num_tensors * num_pointers; }
  MTLFAST_HD constexpr int64 first_chunks() const { return sizes() + 8ll * num_tensors; }
  MTLFAST_HD constexpr int64 bytes() const {
    return (first_chunks() + 4ll * (num_tensors + 1) + 15) / 16 * 16;
  }
};

// The table in a kernel's parameters, or, where it is larger, its address in the memory of the device.
template <int kBytes>
struct TableParams {
  TableLayout layout;
  const unsigned char* remote;  // null: in `payload`
  uint32 num_chunks;
  int chunk_columns;  // a multiple of 2048, so that the first element of every chunk is as aligned as the tensor
  alignas(16) unsigned char payload[kBytes];
};

// A piece of a table on its way to the memory of the device.
struct UploadParams {
  unsigned char* target;
  int count;  // of 16-byte packets
  alignas(16) unsigned char payload[kLargePayload];
};

// ---- Each kernel's own ---------------------------------------------------------------------------------------------

struct SumParams {
  // [sums, blocks], and one ticket; where teams of blocks add up (see team_sum.h), for each team team_slots() times
  // [sums], and team_tickets().
  double* partials;
  uint32* ticket;  // zero before the launch, and again after it
};

template <int kPayload>
struct GramianParams {
  TableParams<kPayload> table;
  SumParams sums;
  double* out;  // [K, K]
  int num_tasks;
  bool accumulate;  // add to what is there
};

MTLFAST_HD constexpr int gramian_threads(int rows) { return rows <= 8 ? 256 : 128; }
// How many blocks of the loop's registers are to fit on a multiprocessor.
MTLFAST_HD constexpr int gramian_blocks(int rows, bool in_double) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
  if (rows > 8) return 2;  // ptxas would spill a few registers
#endif
  if (rows <= 4) return in_double ? 3 : 4;
  return rows <= 8 ? (in_double && rows > 6 ? 1 : 2) : 3;
}

// ---- Gramians by tensor cores: tiles of 16 x 8 tasks, or of 8 x 8 where sums are float64 ---------------------------

constexpr int kTileThreads = 128;
// Packets of a row that one lane multiplies before its sums move on to float64.
constexpr int kStepsPerLane = 64;

// Tasks are padded to groups of 8. The triangle of up to 8 groups is one block's work; of more than 64 tasks a block has
// the products of 4 groups with 4 groups, a pair.
constexpr int kPairGroups = 4;
constexpr int kPairRows = 8 * kPairGroups;

// How many sums a block has. `height`: groups of a tile.
MTLFAST_HD constexpr int triangle_sums(int groups, int height) {
  int tiles = 0;
  for (int group = 0; group < groups; group += height) tiles += groups - group;
  return tiles * height * 64;
}
MTLFAST_HD constexpr int pair_sums() { return kPairRows * kPairRows; }
MTLFAST_HD constexpr int tile_height(bool in_double) { return in_double ? 1 : 2; }
MTLFAST_HD constexpr int tile_shared_bytes(int sums) { return 8 * sums * (kTileThreads / 32); }
// Of columns that a warp multiplies at once, from each of its 4 lanes that share a row.
MTLFAST_HD constexpr int tile_columns(int element_bytes) { return 64 / element_bytes; }
MTLFAST_HD constexpr int pairs_of(int num_tasks) {
  const int sections = (num_tasks + kPairRows - 1) / kPairRows;
  return sections * (sections + 1) / 2;
}

// ---- Sums over a team of blocks ------------------------------------------------------------------------------------

constexpr int kTeamFan = 16;  // blocks, or groups of blocks, that are added up at once

MTLFAST_HD constexpr int64 team_groups(int64 members) {
  return (members + kTeamFan - 1) / kTeamFan;
}
MTLFAST_HD constexpr int64 team_slots(int64 members) {
  return members <= 1 ? 0 : members + team_slots(team_groups(members));
}
MTLFAST_HD constexpr int64 team_tickets(int64 members) {
  return members <= 1 ? 0 : team_groups(members) + team_tickets(team_groups(members));
}

constexpr int kCombineThreads = 256;
constexpr int kNearWeights = 128;  // in shared memory; more are read from where they are

template <int kPayload>
struct CombineParams {
  TableParams<kPayload> table;  // pointer K: where the tensor's result goes; null: skip it
  const double* weights;        // [K]
  int num_tasks;
  bool accumulate;  // add to what is there
};

constexpr int kColumnThreads = 256;  // of the kernels that look at every column by itself

template <int kPayload>
struct GradDropParams {
  // Pointer K: where the result goes; null: skip it. Pointer K + 1: the chance of each column; where they are drawn
  // 16 times the number of columns before the tensor, so that it counts as aligned.
  TableParams<kPayload> table;
  const double* leak;  // [K], null: nothing leaks
  const int64* rng;    // [2], seed and counter; null: the chances are given
  int num_tasks;
  bool accumulate;  // add to what is there
};

struct AdvanceParams {
  int64* rng;
};

constexpr int kListedTrims = 2;  // up to here the entries to leave out are listed in registers

template <int kPayload>
struct TrimmedMeanParams {
  TableParams<kPayload> table;  // pointer K: where the tensor's result goes; null: skip it
  int num_tasks;
  int trim;         // entries that are left out at either end
  bool accumulate;  // add to what is there
};

constexpr int kExcessRows = 128;  // of one launch

template <int kPayload>
struct ExcessParams {
  TableParams<kPayload>
      table;  // pointers K + k: the old sums of row k, null for zeros; 2 K + k: the new ones
  SumParams sums;
  double* out;  // [K]
  int num_tasks;
  int first_row;
  int num_rows;     // at most kExcessRows
  bool accumulate;  // add to what is there
};

constexpr int kSketchThreads = 128;  // and as many buckets of a block

// The element types of the tensors that one launch folds.
enum SketchType : int {
  kSketchFloat = 0,
  kSketchDouble = 1,
  kSketchBFloat16 = 2,
  kSketchFloat16 = 3,
  kSketchTypes = 4
};

template <int kPayload>
struct SketchParams {
  TableParams<kPayload>
      table;  // pointer 1: kSketchTypes times the number of the first element, and the type
  SumParams sums;
  float* sketch;  // [2^log_buckets]
  double* norm;   // [1]
  uint64 key;     // of the signs
  int log_buckets;
};

constexpr int kUpdateThreads = 256;

template <int kPayload>
struct UpdateParams {
  TableParams<kPayload> table;  // pointers K..: see fused_step.h; a null parameter: skip the tensor
  const double* weights;        // [K]
  Update update;
  double count;  // of steps, this one included, where steps_here is not set
  int num_tasks;
  bool steps_here;  // the table says where the counts are
  bool wide_steps;  // they are float64, not float32
};

constexpr int kMaxOptions = 8;

struct SolveParams {
  const double* gramian;  // as in SolveArgs, from here on
  const double* losses;
  const double* inputs;
  const int64* order;
  int64* rng;
  double* state;
  double* weights;
  int* status;      // null: nobody asks
  double* scratch;  // [K, K] and the solver's workspace; null: in shared memory
  int num_tasks;
  double options[kMaxOptions];
};

}  // namespace mtlfast
