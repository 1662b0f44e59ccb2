// Kernels by name, and launches on torch's current stream of a tensor's device.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/DeviceGuard.h>

#include <deque>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "driver.h"

namespace mtlfast::cuda {

// Whether tensors of this device take the way of CUDA tensors.
inline bool is_ours(const at::Device& device) {
  return device.is_cuda() || (simulated() && device.is_cpu());
}

struct Kernel {
  Function function;
  int resident_blocks;  // that run at the same time on the whole device
};

// Where a call's launches go: the device of its tensors, made current while this lives, and torch's current stream.
class Place {
 public:
  explicit Place(const at::Device& device);

  const at::Device& device() const { return device_; }
  int multiprocessors() const;
  int max_shared_bytes() const;
  int float_to_double_speed() const;  // how many times as fast float32 arithmetic is

  // By name. `threads` and `shared_bytes` are those of every launch of it.
  const Kernel& kernel(const std::string& name, int threads, int shared_bytes = 0) const;

  template <class Params>
  void launch(const Kernel& kernel, int64_t blocks, int threads, Params& params,
              int shared_bytes = 0) const {
    launch_any(kernel, blocks, threads, &params, shared_bytes);
  }

  // Zeroed counters that launches on this stream take turns with; each leaves them at zero.
  uint32_t* ticket(int64_t count = 1) const;

  at::Tensor empty(int64_t count, at::ScalarType type) const;

  // The table that this stream uploaded last under a name. While a graph is captured it is always a fresh one, which
  // belongs to the graph.
  struct Upload {
    std::vector<unsigned char> bytes;
    at::Tensor tensor;
  };
  Upload& last_upload(const std::string& name) const;

 private:
  void launch_any(const Kernel& kernel, int64_t blocks, int threads, void* params,
                  int shared_bytes) const;
  bool capturing() const;

  at::Device device_;
  c10::OptionalDeviceGuard guard_;
  Stream stream_;
  // Kept until the call ends: what a captured graph needs afterwards lives in the graph's own pool.
  mutable std::vector<at::Tensor> kept_;
  mutable std::deque<Upload> captured_uploads_;
};

// Where kernels come from: a function that is given a kernel's name and the device's number and returns an image for
// cuModuleLoadData, or an empty string. Images that are loaded are searched first.
void set_compiler(std::function<std::string(const std::string&, int)> compiler);
void forget_modules();

// How many kernels were launched so far, by name: for tests and diagnostics.
std::vector<std::pair<std::string, int64_t>> launch_counts();

}  // namespace mtlfast::cuda
