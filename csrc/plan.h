// One walk over the Python lists of task gradients: pointers, sizes and types for the kernels.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <deque>
#include <string>
#include <vector>

#include "cpu/kernel_table.h"

typedef struct _object PyObject;

namespace mtlfast {

// K sequences of T tensors (or None), flattened so that a kernel reads each block as K rows of equal length.
struct Plan {
  int num_tasks = 0;
  at::Device device = at::kCPU;  // of all tensors
  int64_t num_tensors = 0;
  int64_t num_columns = 0;         // P: elements of all tensors that some task reaches
  std::vector<const void*> rows;   // [T, K]; null: the task does not reach the tensor
  std::vector<int64_t> offsets;    // [T + 1]: prefix sums of the sizes
  std::vector<ElementType> types;  // [T]
  std::vector<const at::Tensor*>
      like;                       // [T]: shape and layout of the rows; null: no task reaches it
  std::deque<at::Tensor> copies;  // dense copies of odd layouts, for this call; they never move
  std::vector<at::Tensor> alive;  // see hold()

  // Reads the lists. Throws TypeError or ValueError naming the entry, what was found and what was expected.
  // A tensor whose layout differs from its peers', or that is no plain dense block, is copied for this call.
  void read(PyObject* task_grads);

  // Reads one list, as the only row. All tensors are kept alive; those whose elements do not follow one another in the
  // order of their indices are copied. `name`: how messages call the list.
  void read_list(PyObject* tensors, const std::string& name);

  // Keeps every tensor alive, so that the interpreter's lock can be released: another thread may change the lists.
  void hold(PyObject* task_grads);

  bool is_large() const { return num_columns * num_tasks > kLargeElements; }

  // Larger than the cache: a result is not read again before it is evicted, so it goes past the cache.
  bool is_beyond_cache() const { return num_columns > kStreamColumns; }

  static constexpr int64_t kLargeElements = 1 << 20;  // under it a call takes 0.1 ms
  static constexpr int64_t kStreamColumns = 1 << 21;
};

// Whether a tensor is a dense block of a device's memory of its own.
bool is_plain(const at::Tensor& tensor, const at::Device& device);

// TypeError or ValueError for what is no plain dense tensor on the device; name is how the message calls it.
void check_plain(const at::Tensor& tensor, const std::string& name, const at::Device& device);

// The columns [begin, end) of tensor t that belong to group number `group` of `num_groups` equal shares of all
// columns. Calls visit(t, begin, end) in order. Boundaries inside a tensor fall on multiples of `align`.
template <class Visit>
void for_each_range(const Plan& plan, int64_t group, int64_t num_groups, int64_t align,
                    Visit visit);

// Equal shares of the columns, a function of the sizes alone: results do not depend on the thread count.
struct Groups {
  int64_t count;
  int64_t align;
};
Groups make_groups(const Plan& plan, int64_t max_groups);

namespace cpu {
void gramian(const Plan& plan, double* out);  // [K, K], row-major
// outs[t]: where tensor t goes, null to skip it; weights [K]; accumulate: add to what outs[t] holds.
void combine(const Plan& plan, const double* weights, const std::vector<void*>& outs,
             bool accumulate);
// leak: [K], null: none. uniform[t]: a chance for each column of tensor t; empty: drawn from rng.
void graddrop(const Plan& plan, const double* leak, const std::vector<const double*>& uniform,
              const int64_t* rng, const std::vector<void*>& outs, bool accumulate);
void trimmed_mean(const Plan& plan, int trim, const std::vector<void*>& outs, bool accumulate);
// old, sums: [T, K], as rows; old null: zeros. out: [K].
void excess(const Plan& plan, const std::vector<const void*>& old, const std::vector<void*>& sums,
            double* out);
// Adds to sketch [num_buckets] and norm [1]: see csrc/cpu/kernel_table.h. One row, of which no tensor is null.
void sketch(const Plan& plan, float* sketch, int64_t num_buckets, double* norm, int64_t first,
            uint64_t key);
// factors: [T]; params: [T]; states: [T, kMaxUpdateStates].
void update(const Plan& plan, const double* weights, UpdateRule rule,
            const std::vector<UpdateFactors<double>>& factors, const std::vector<void*>& params,
            const std::vector<void*>& states);
}  // namespace cpu

const KernelTable& kernels();      // the table in force
void force_isa(const char* name);  // "avx512", "avx2", "baseline", or "auto"
std::vector<const char*> supported_isas();

template <class Visit>
void for_each_range(const Plan& plan, int64_t group, int64_t num_groups, int64_t align,
                    Visit visit) {
  const int64_t first = plan.num_columns * group / num_groups;
  const int64_t last = plan.num_columns * (group + 1) / num_groups;
  // The last tensor that starts at or before `first`: binary search over the prefix sums.
  int64_t low = 0;
  int64_t high = plan.num_tensors;
  while (high - low > 1) {
    const int64_t middle = (low + high) / 2;
    (plan.offsets[middle] <= first ? low : high) = middle;
  }
  for (int64_t t = low; t < plan.num_tensors && plan.offsets[t] < last; ++t) {
    const int64_t start = plan.offsets[t];
    const int64_t size = plan.offsets[t + 1] - start;
    const int64_t begin = first <= start ? 0 : (first - start) / align * align;
    const int64_t end = last >= start + size ? size : (last - start) / align * align;
    if (begin < end) visit(t, begin, end);
  }
}

}  // namespace mtlfast
