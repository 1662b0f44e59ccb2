// Who works on one K x K problem: a single thread, or the 32 lanes of a warp together.
//
// A collective function is called by all lanes. They hold the same scalars and take the same branches; loops over
// arrays are dealt out,
//
//     for (int i = lanes.index(); i < count; i += lanes.count()) values[i] = ...;
//     lanes.sync();
//
// and nothing that another lane wrote is read, and nothing that another lane may still read is written, without a
// sync() in between. A sum that every lane needs is taken by the `adders`,
//
//     const Lanes team = lanes.adders(count);
//     double total = team.first() ? start : 0.0;
//     for (int i = team.index(); i < count; i += team.count()) total += values[i];
//     total = team.sum(total);
//
// On the host there is one lane: every loop is the plain one and every call here folds away.
#pragma once

#if defined(__CUDACC__)
#define MTLFAST_HD __host__ __device__ inline
#else
#define MTLFAST_HD inline
#endif

// Code that runs in a kernel: on a GPU, or on the fibers that stand for its threads in the tests.
#if defined(__CUDA_ARCH__) || defined(MTLFAST_FIBERS)
#define MTLFAST_IN_KERNEL 1
#else
#define MTLFAST_IN_KERNEL 0
#endif

namespace mtlfast {

typedef long long int64;
typedef unsigned long long uint64;

#if MTLFAST_IN_KERNEL

constexpr unsigned kAllLanes = 0xffffffffu;
constexpr double kLast = 1.7976931348623157e308;  // the largest double

class Lanes {
 public:
  static MTLFAST_HD Lanes single() { return Lanes(0, 1); }
  static MTLFAST_HD Lanes warp() { return Lanes(static_cast<int>(threadIdx.x) % 32, 32); }

  MTLFAST_HD int index() const { return index_; }
  MTLFAST_HD int count() const { return count_; }
  MTLFAST_HD bool first() const { return index_ == 0; }

  // The lanes as a rectangle, for loops over the entries of a matrix.
  MTLFAST_HD int row() const { return index_ / kColumns; }
  MTLFAST_HD int rows() const { return count_ > kColumns ? count_ / kColumns : 1; }
  MTLFAST_HD int column() const { return index_ % kColumns; }
  MTLFAST_HD int columns() const { return count_ > kColumns ? kColumns : 1; }

  // Who reduces `count` numbers to one: all lanes together or, where their exchanges would take
  // longer, every lane for itself.
  MTLFAST_HD Lanes adders(int count) const { return count <= kFew ? single() : *this; }

  MTLFAST_HD void sync() const {
    if (count_ > 1) __syncwarp(kAllLanes);
  }

  // The sum over the lanes, the same bits in each: a tree whose halves are equally long.
  MTLFAST_HD double sum(double value) const {
    for (int step = count_ / 2; step > 0; step /= 2) {
      value += __shfl_xor_sync(kAllLanes, value, step);
    }
    return value;
  }

  // NaN counts as nothing: it must not end in some lanes and not in others, which would then part.
  MTLFAST_HD double largest(double value) const {
    for (int step = count_ / 2; step > 0; step /= 2) {
      value = fmax(value, __shfl_xor_sync(kAllLanes, value, step));
    }
    return value;
  }

  MTLFAST_HD double smallest(double value) const { return -largest(-value); }

  MTLFAST_HD bool all(bool condition) const {
    return count_ > 1 ? __all_sync(kAllLanes, condition) != 0 : condition;
  }

  MTLFAST_HD bool any(bool condition) const { return !all(!condition); }

  // The index that comes with the smallest value, among equal values the lowest index; -1 where every lane brings -1.
  // Each lane brings its own smallest, the first it met; NaN comes last.
  MTLFAST_HD int index_of_smallest(double value, int index) const {
    if (!(value == value)) value = kLast;
    for (int step = count_ / 2; step > 0; step /= 2) {
      const double other = __shfl_xor_sync(kAllLanes, value, step);
      const int other_index = __shfl_xor_sync(kAllLanes, index, step);
      const bool better = index < 0 || other < value || (other == value && other_index < index);
      if (other_index >= 0 && better) {
        value = other;
        index = other_index;
      }
    }
    return index;
  }

  // What lane `source` holds.
  MTLFAST_HD double from(double value, int source) const {
    return count_ > 1 ? __shfl_sync(kAllLanes, value, source) : value;
  }

 private:
  MTLFAST_HD Lanes(int index, int count) : index_(index), count_(count) {}

  static constexpr int kColumns = 8;
  static constexpr int kFew = 8;  // terms, about as long as the five exchanges of a sum

  int index_;
  int count_;
};

#else

class Lanes {
 public:
  static MTLFAST_HD Lanes single() { return Lanes(); }
  static MTLFAST_HD Lanes warp() { return Lanes(); }
  static constexpr MTLFAST_HD int index() { return 0; }
  static constexpr MTLFAST_HD int count() { return 1; }
  static constexpr MTLFAST_HD bool first() { return true; }
  static constexpr MTLFAST_HD int row() { return 0; }
  static constexpr MTLFAST_HD int rows() { return 1; }
  static constexpr MTLFAST_HD int column() { return 0; }
  static constexpr MTLFAST_HD int columns() { return 1; }
  static MTLFAST_HD Lanes adders(int) { return Lanes(); }
  static MTLFAST_HD void sync() {}
  static MTLFAST_HD double sum(double value) { return value; }
  static MTLFAST_HD double largest(double value) { return value; }
  static MTLFAST_HD double smallest(double value) { return value; }
  static MTLFAST_HD bool all(bool condition) { return condition; }
  static MTLFAST_HD bool any(bool condition) { return condition; }
  static MTLFAST_HD int index_of_smallest(double, int index) { return index; }
  static MTLFAST_HD double from(double value, int) { return value; }
};

#endif

}  // namespace mtlfast
