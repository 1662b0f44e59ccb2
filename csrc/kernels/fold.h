// What is computed column by column from all rows: they are folded one by one into a few registers, and these into the
// result. One read of every row, one write.
#pragma once

#include "element.h"
#include "table.h"

namespace mtlfast {

constexpr int kFoldRows = 4;  // whose loads are under way at once

// A fold is a class with
//   Column: what it keeps of one column;
//   start(table, tensor, begin, end): called before a chunk;
//   add<kFirst>(column, value, row, r): takes in an entry, widened. kFirst: r rows came before it, else at least
//     kFoldRows. The row may be one that is not there, of zeros;
//   finish(column, position): the result, for the tensor's column number `position`.

// Folds up to kFoldRows rows from `first` on over kWidth columns: a packet, or a single one.
template <bool kFirst, int kWidth, class T, class Fold>
MTLFAST_DEVICE void fold_rows(const Fold& fold, const Table& table, int tensor, int num_tasks,
                              int first, int64 position, typename Fold::Column* columns) {
  Packet packets[kFoldRows];
#pragma unroll
  for (int r = 0; r < kFoldRows; ++r) {
    const T* row = first + r < num_tasks ? table.pointer<const T>(tensor, first + r) : nullptr;
    packets[r] = {{0, 0, 0, 0}};
    if (row != nullptr) {
      packets[r] = kWidth == 1 ? load_single(row + position) : load_packet(row + position);
    }
  }
#pragma unroll
  for (int r = 0; r < kFoldRows; ++r) {
    if (first + r < num_tasks) {
#pragma unroll
      for (int e = 0; e < kWidth; ++e) {
        fold.template add<kFirst>(columns[e], element<T>(packets[r], e), first + r, r);
      }
    }
  }
}

template <int kWidth, class T, class Fold>
MTLFAST_DEVICE void fold_columns(const Fold& fold, const Table& table, int tensor, int num_tasks,
                                 int64 position, bool accumulate, T* out) {
  typename Fold::Column columns[kWidth];
  fold_rows<true, kWidth, T>(fold, table, tensor, num_tasks, 0, position, columns);
  for (int first = kFoldRows; first < num_tasks; first += kFoldRows) {
    fold_rows<false, kWidth, T>(fold, table, tensor, num_tasks, first, position, columns);
  }
  double results[kWidth];
#pragma unroll
  for (int e = 0; e < kWidth; ++e) results[e] = fold.finish(columns[e], position + e);
  if (accumulate) {
    const Packet before = kWidth == 1 ? load_single(out + position) : load_packet(out + position);
#pragma unroll
    for (int e = 0; e < kWidth; ++e) results[e] += element<T>(before, e);
  }
  if (kWidth == 1) {
    out[position] = narrow<T>(results[0]);
  } else {
    store_packet(out + position, pack<T>(results));
  }
}

// out (+)= the result for every tensor that has a target, which is pointer K; `out` may be one of the rows.
template <class T, class Params, class Fold>
MTLFAST_DEVICE void fold_table(const Params& params, Fold& fold) {
  constexpr int kCount = Vector<T>::kCount;
  const Table table(params.table);
  const int num_tasks = params.num_tasks;
  for_each_chunk(table, params.table.num_chunks, [&](int tensor, int64 begin, int64 end) {
    T* out = table.pointer<T>(tensor, num_tasks);
    if (out == nullptr) return;
    fold.start(table, tensor, begin, end);
    const int64 thread = threadIdx.x;
    const int64 vector_end = begin + (table.aligned(tensor) ? (end - begin) / kCount * kCount : 0);
    for (int64 column = begin + thread * kCount; column < vector_end;
         column += kColumnThreads * kCount) {
      fold_columns<kCount>(fold, table, tensor, num_tasks, column, params.accumulate, out);
    }
    for (int64 column = vector_end + thread; column < end; column += kColumnThreads) {
      fold_columns<1>(fold, table, tensor, num_tasks, column, params.accumulate, out);
    }
  });
}

}  // namespace mtlfast
