// How teams of blocks add up many float64 sums: as a tree, so that no single block has to read what all others left.
//
// A team is some of the launch's blocks, which know their numbers in it. At each level the blocks, and later the groups
// of blocks, leave their sums; the last one of each kTeamFan to come adds these up and goes on to the next level. Which
// block that is varies from run to run, but what is added in which order does not.
#pragma once

#include "gramian_sum.h"

namespace mtlfast {

struct Team {
  int64 number;   // of this team
  int64 member;   // of this block in it
  int64 members;  // of each team
};

// `totals`: [num_parts, num_sums] in shared memory, this block's parts of each sum; overwritten. The last block of the
// team calls place(sum, total) once for each, by one thread.
template <class Place>
MTLFAST_DEVICE void finish_team_sums(const SumParams& params, const Team& team, double* totals,
                                     int num_parts, int num_sums, Place place) {
  constexpr int kAtOnce = 4;  // loads under way
  const int threads = static_cast<int>(blockDim.x);
  const int thread = static_cast<int>(threadIdx.x);
  double* partials = params.partials + team.number * team_slots(team.members) * num_sums;
  uint32* tickets = params.ticket + team.number * team_tickets(team.members);
  int64 members = team.members;
  int64 member = team.member;

  __syncthreads();
  // From here on each thread works on its own sums alone.
  for (int sum = thread; sum < num_sums; sum += threads) {
    double total = totals[sum];
    for (int part = 1; part < num_parts; ++part) total += totals[part * num_sums + sum];
    totals[sum] = total;
  }
  while (members > 1) {
    for (int sum = thread; sum < num_sums; sum += threads) {
      partials[member * num_sums + sum] = totals[sum];
    }
    const int64 group = member / kTeamFan;
    const int64 first = group * kTeamFan;
    const int64 left = members - first;
    const int count = left < kTeamFan ? static_cast<int>(left) : kTeamFan;
    if (!comes_last(tickets + group, static_cast<uint32>(count))) return;
    for (int sum = thread; sum < num_sums; sum += threads) {
      // Volatile: written by other blocks during this launch, which the L1 cache need not know.
      const volatile double* parts = partials + first * num_sums + sum;
      double total = 0.0;
      for (int part = 0; part < count; part += kAtOnce) {
        double values[kAtOnce];
#pragma unroll
        for (int i = 0; i < kAtOnce; ++i) {
          values[i] = part + i < count ? parts[static_cast<int64>(part + i) * num_sums] : 0.0;
        }
#pragma unroll
        for (int i = 0; i < kAtOnce; ++i) total += values[i];
      }
      totals[sum] = total;
    }
    partials += members * num_sums;
    members = team_groups(members);
    tickets += members;
    member = group;
  }
  for (int sum = thread; sum < num_sums; sum += threads) place(sum, totals[sum]);
}

}  // namespace mtlfast
