// The tensors that a kernel walks over: pointers, sizes, and who works on which columns.
//
// All columns are cut into chunks of equal length; the last chunk of a tensor may be shorter, and no chunk spans two
// tensors. Blocks take equally many chunks, the first ones one more where they do not divide evenly.
#pragma once

#include "params.h"
#include "target.h"

namespace mtlfast {

class Table {
 public:
  template <int kBytes>
  MTLFAST_DEVICE explicit Table(const TableParams<kBytes>& params)
      : bytes_(params.remote != nullptr ? params.remote : params.payload),
        layout_(params.layout),
        chunk_columns_(params.chunk_columns) {}

  template <class T>
  MTLFAST_DEVICE T* pointer(int tensor, int i) const {
    return reinterpret_cast<T* const*>(
        bytes_)[static_cast<int64>(tensor) * layout_.num_pointers + i];
  }
  MTLFAST_DEVICE int64 size(int tensor) const { return packed_size(tensor) >> 1; }
  // Whether every pointer of the tensor is a multiple of 16 bytes.
  MTLFAST_DEVICE bool aligned(int tensor) const { return (packed_size(tensor) & 1) != 0; }
  MTLFAST_DEVICE uint32 first_chunk(int tensor) const {
    return reinterpret_cast<const uint32*>(bytes_ + layout_.first_chunks())[tensor];
  }

  // The tensor that a chunk belongs to; none of the empty ones.
  MTLFAST_DEVICE int tensor_of(uint32 chunk) const {
    int low = 0;
    int high = layout_.num_tensors;
    while (high - low > 1) {
      const int middle = (low + high) / 2;
      if (first_chunk(middle) <= chunk) {
        low = middle;
      } else {
        high = middle;
      }
    }
    return low;
  }

  MTLFAST_DEVICE int64 first_column(int tensor, uint32 chunk) const {
    return static_cast<int64>(chunk - first_chunk(tensor)) * chunk_columns_;
  }
  MTLFAST_DEVICE int64 end_column(int tensor, uint32 chunk) const {
    const int64 end = first_column(tensor, chunk) + chunk_columns_;
    const int64 columns = size(tensor);
    return end < columns ? end : columns;
  }

 private:
  MTLFAST_DEVICE int64 packed_size(int tensor) const {
    return reinterpret_cast<const int64*>(bytes_ + layout_.sizes())[tensor];
  }

  const unsigned char* bytes_;
  TableLayout layout_;
  int chunk_columns_;
};

// Calls visit(tensor, begin, end) for the chunks of block `block` of `blocks`, in order. All threads of the block take
// part.
template <class Visit>
MTLFAST_DEVICE void for_each_chunk(const Table& table, uint32 num_chunks, uint32 block,
                                   uint32 blocks, Visit visit) {
  const uint32 share = num_chunks / blocks;
  const uint32 more = num_chunks % blocks;
  const uint32 begin = block * share + (block < more ? block : more);
  const uint32 end = begin + share + (block < more ? 1u : 0u);
  if (begin == end) return;
  int tensor = table.tensor_of(begin);
  for (uint32 chunk = begin; chunk < end; ++chunk) {
    while (chunk >= table.first_chunk(tensor + 1)) ++tensor;
    visit(tensor, table.first_column(tensor, chunk), table.end_column(tensor, chunk));
  }
}

template <class Visit>
MTLFAST_DEVICE void for_each_chunk(const Table& table, uint32 num_chunks, Visit visit) {
  for_each_chunk(table, num_chunks, blockIdx.x, gridDim.x, visit);
}

MTLFAST_DEVICE void upload(const UploadParams& params) {
  const int step = static_cast<int>(blockDim.x);
  const uint64* from = reinterpret_cast<const uint64*>(params.payload);
  uint64* to = reinterpret_cast<uint64*>(params.target);
  for (int i = static_cast<int>(threadIdx.x); i < 2 * params.count; i += step) to[i] = from[i];
}

}  // namespace mtlfast
