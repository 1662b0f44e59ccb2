// The tensors that a kernel walks over: pointers, sizes, and who works on which columns.
//
// All columns are cut into chunks of equal length; the last chunk of a tensor may be shorter, and no chunk spans two
// tensors. Block b of n takes the chunks [b, b + 1) * count / n.
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

// Calls visit(tensor, begin, end) for this block's chunks, in order. All threads of the block take part.
template <class Visit>
MTLFAST_DEVICE void for_each_chunk(const Table& table, uint32 num_chunks, Visit visit) {
  const uint64 count = num_chunks;
  const uint32 begin = static_cast<uint32>(count * blockIdx.x / gridDim.x);
  const uint32 end = static_cast<uint32>(count * (blockIdx.x + 1) / gridDim.x);
  if (begin == end) return;
  int tensor = table.tensor_of(begin);
  for (uint32 chunk = begin; chunk < end; ++chunk) {
    while (chunk >= table.first_chunk(tensor + 1)) ++tensor;
    visit(tensor, table.first_column(tensor, chunk), table.end_column(tensor, chunk));
  }
}

MTLFAST_DEVICE void upload(const UploadParams& params) {
  const int step = static_cast<int>(blockDim.x);
  const uint64* from = reinterpret_cast<const uint64*>(params.payload);
  uint64* to = reinterpret_cast<uint64*>(params.target);
  for (int i = static_cast<int>(threadIdx.x); i < 2 * params.count; i += step) to[i] = from[i];
}

}  // namespace mtlfast
