// The table of tensors that a kernel walks over, and launches with it.
#pragma once

#include <algorithm>
#include <cstring>
#include <string>
#include <vector>

#include "../kernels/params.h"
#include "../plan.h"
#include "launch.h"

namespace mtlfast::cuda {

constexpr int64_t kTeamWaves = 4;

const char* type_name(ElementType type);  // as in the kernels' names

// The tensors of one element type, laid out as csrc/kernels/table.h reads them.
struct TableBytes {
  TableLayout layout = {};
  uint32_t num_chunks = 0;
  int chunk_columns = 0;
  std::vector<unsigned char> bytes;
};

// Of all tensors, where the type is kNumElementTypes. Pointer L of tensor t is more[L - K][t]; an empty list stands for null pointers. No chunk is longer than
// `max_columns`. num_chunks is 0 where no tensor has this type.
const TableBytes& make_table(const Plan& plan, ElementType type, const Place& place,
                             const std::vector<const std::vector<void*>*>& more, int max_columns);

// The table in the device's memory; uploaded unless the last one of this name on this stream was the same.
const unsigned char* upload(const TableBytes& table, const std::string& name, const Place& place);

// Launches the kernel `name` with the table in its parameters, where it fits; fill(params, blocks) sets the others.
// Blocks form `teams` of equal size, each of which walks over the whole table; more than run at the same time where
// there are several teams, so that the last ones to end do not count. `blocks`: so many instead, for a kernel that does
// not deal out the table; 0: no such number.
template <template <int> class Params, class Fill>
void launch_with_table(const Place& place, const std::string& name, int threads,
                       const TableBytes& table, Fill fill, int shared_bytes = 0, int64_t teams = 1,
                       int64_t blocks = 0) {
  const auto run = [&](auto& params, const char* suffix, const unsigned char* remote) {
    params.table.layout = table.layout;
    params.table.num_chunks = table.num_chunks;
    params.table.chunk_columns = table.chunk_columns;
    params.table.remote = remote;
    if (remote == nullptr)
      std::memcpy(params.table.payload, table.bytes.data(), table.bytes.size());
    const Kernel& kernel = place.kernel(name + suffix, threads, shared_bytes);
    const int64_t wanted =
        teams == 1 ? kernel.resident_blocks : kTeamWaves * kernel.resident_blocks / teams;
    const int64_t members = std::clamp<int64_t>(table.num_chunks, 1, std::max<int64_t>(1, wanted));
    const int64_t count = blocks != 0 ? blocks : teams * members;
    fill(params, count);
    place.launch(kernel, count, threads, params, shared_bytes);
  };
  const int64_t bytes = table.layout.bytes();
  if (bytes > kSmallPayload && bytes <= kLargePayload) {
    Params<kLargePayload> params;
    return run(params, "_l", nullptr);
  }
  Params<kSmallPayload> params;
  run(params, "_s", bytes <= kSmallPayload ? nullptr : upload(table, name, place));
}

}  // namespace mtlfast::cuda
