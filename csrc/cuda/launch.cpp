#include "launch.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <torch/csrc/utils/pybind.h>

#include <algorithm>
#include <map>
#include <mutex>
#include <stdexcept>
#include <unordered_map>

namespace mtlfast::cuda {
namespace {

struct KernelState {
  Kernel kernel;
  int64_t launches = 0;
};

struct DeviceState {
  Context context = nullptr;
  int multiprocessors = 0;
  int max_shared_bytes = 0;
  int float_to_double_speed = 0;
  std::vector<Module> modules;
  std::unordered_map<std::string, KernelState> kernels;
  std::map<Stream, at::Tensor> tickets;
  std::map<std::pair<Stream, std::string>, Place::Upload> uploads;
};

// All of it is used under the interpreter's lock.
struct State {
  std::function<std::string(const std::string&, int)> compiler;
  std::map<int, DeviceState> devices;
};

State& state() {
  static State* const it =
      new State;  // never destroyed: the driver may be gone before static objects are
  return *it;
}

// Torch's current stream. By way of Python, because c10's streams of older torch versions do not tell their handles.
Stream current_stream(int device) {
  static PyObject* const find =
      py::object(py::module_::import("torch._C").attr("_cuda_getCurrentRawStream")).release().ptr();
  const auto number = py::reinterpret_steal<py::object>(PyLong_FromLong(device));
  const auto handle = py::reinterpret_steal<py::object>(PyObject_CallOneArg(find, number.ptr()));
  if (!handle) throw py::error_already_set();
  return static_cast<Stream>(PyLong_AsVoidPtr(handle.ptr()));
}

int ordinal(const at::Device& device) { return device.is_cuda() ? device.index() : 0; }

DeviceState& device_state(const at::Device& device) {
  DeviceState& found = state().devices[ordinal(device)];
  if (found.context != nullptr) return found;
  Device handle = 0;
  check(driver().cuDeviceGet(&handle, ordinal(device)), "finding device " + device.str());
  const auto attribute = [&](int which) {
    int value = 0;
    check(driver().cuDeviceGetAttribute(&value, which, handle), "asking " + device.str());
    return value;
  };
  found.multiprocessors = attribute(kMultiprocessors);
  found.max_shared_bytes = attribute(kMaxSharedBytesOptIn);
  found.float_to_double_speed = attribute(kFloatToDoubleSpeed);
  check(driver().cuDevicePrimaryCtxRetain(&found.context, handle), "using " + device.str());
  return found;
}

Function find_function(DeviceState& device, int number, const std::string& name) {
  Function function = nullptr;
  const auto found_in = [&](Module module) {
    const Result result = driver().cuModuleGetFunction(&function, module, name.c_str());
    if (result != kNotFound) check(result, "looking for the kernel " + name);
    return result == 0;
  };
  const auto load = [&](const std::string& image) {
    Module module = nullptr;
    check(driver().cuModuleLoadData(&module, image.data()),
          "loading kernels for cuda:" + std::to_string(number));
    device.modules.push_back(module);
    return module;
  };
  if (simulated() && device.modules.empty()) load("simulated");
  for (Module module : device.modules)
    if (found_in(module)) return function;
  if (state().compiler) {
    const std::string image = state().compiler(name, number);
    if (!image.empty() && found_in(load(image))) return function;
  }
  throw std::runtime_error("CUDA: there is no kernel " + name + " for cuda:" +
                           std::to_string(number) + "; 'mtlfast doctor' says what is installed");
}

}  // namespace

Place::Place(const at::Device& device) : device_(device), stream_(nullptr) {
  const DeviceState& own = device_state(device);
  if (!device.is_cuda()) return;
  guard_.reset_device(device);
  stream_ = current_stream(device.index());
  // A thread that has not used the device yet has no context.
  Context current = nullptr;
  check(driver().cuCtxGetCurrent(&current), "asking for the context");
  if (current == nullptr) check(driver().cuCtxSetCurrent(own.context), "setting the context");
}

int Place::multiprocessors() const { return device_state(device_).multiprocessors; }
int Place::max_shared_bytes() const { return device_state(device_).max_shared_bytes; }
int Place::float_to_double_speed() const { return device_state(device_).float_to_double_speed; }

const Kernel& Place::kernel(const std::string& name, int threads, int shared_bytes) const {
  DeviceState& device = device_state(device_);
  const auto known = device.kernels.find(name);
  if (known != device.kernels.end()) return known->second.kernel;
  if (capturing())
    throw std::runtime_error("CUDA: the kernel " + name +
                             " is not loaded yet, and a graph that is being captured forbids it; "
                             "run one step before the capture, or mtlfast.cuda.warm_up()");
  KernelState fresh;
  fresh.kernel.function = find_function(device, ordinal(device_), name);
  constexpr int kDefaultSharedBytes = 47 * 1024;  // 48 KiB with what a kernel declares
  if (shared_bytes > kDefaultSharedBytes)
    check(driver().cuFuncSetAttribute(fresh.kernel.function, kMaxDynamicSharedBytes, shared_bytes),
          "asking for the shared memory of " + name);
  int per_multiprocessor = 0;
  check(driver().cuOccupancyMaxActiveBlocksPerMultiprocessor(
            &per_multiprocessor, fresh.kernel.function, threads, static_cast<size_t>(shared_bytes)),
        "asking for the occupancy of " + name);
  fresh.kernel.resident_blocks = std::max(1, per_multiprocessor) * device.multiprocessors;
  return device.kernels.emplace(name, fresh).first->second.kernel;
}

void Place::launch_any(const Kernel& kernel, int64_t blocks, int threads, void* params,
                       int shared_bytes) const {
  void* arguments[] = {params};
  check(driver().cuLaunchKernel(kernel.function, static_cast<unsigned>(blocks), 1, 1,
                                static_cast<unsigned>(threads), 1, 1,
                                static_cast<unsigned>(shared_bytes), stream_, arguments, nullptr),
        "a launch");
  // A kernel is a member of its state, which the map never moves.
  ++const_cast<KernelState&>(reinterpret_cast<const KernelState&>(kernel)).launches;
}

bool Place::capturing() const {
  int status = 0;
  check(driver().cuStreamIsCapturing(stream_, &status), "asking for a capture");
  return status != 0;
}

uint32_t* Place::ticket(int64_t count) const {
  constexpr int64_t kAtLeast = 64;
  const auto fresh = [&] {
    return at::zeros({std::max(count, kAtLeast)},
                     at::TensorOptions().dtype(at::kInt).device(device_));
  };
  if (capturing()) {
    // A graph may be replayed on any stream, beside others: it gets counters of its own.
    kept_.push_back(fresh());
    return static_cast<uint32_t*>(kept_.back().mutable_data_ptr());
  }
  at::Tensor& own = device_state(device_).tickets[stream_];
  if (!own.defined() || own.numel() < count) own = fresh();
  return static_cast<uint32_t*>(own.mutable_data_ptr());
}

at::Tensor Place::empty(int64_t count, at::ScalarType type) const {
  return at::empty({count}, at::TensorOptions().dtype(type).device(device_));
}

Place::Upload& Place::last_upload(const std::string& name) const {
  if (capturing()) return captured_uploads_.emplace_back();
  return device_state(device_).uploads[{stream_, name}];
}

void set_compiler(std::function<std::string(const std::string&, int)> compiler) {
  state().compiler = std::move(compiler);
}

void forget_modules() { state().devices.clear(); }

std::vector<std::pair<std::string, int64_t>> launch_counts() {
  std::vector<std::pair<std::string, int64_t>> counts;
  for (const auto& [number, device] : state().devices)
    for (const auto& [name, kernel] : device.kernels)
      if (kernel.launches > 0) counts.emplace_back(name, kernel.launches);
  std::sort(counts.begin(), counts.end());
  return counts;
}

}  // namespace mtlfast::cuda
