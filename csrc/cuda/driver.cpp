#include "driver.h"

#include <dlfcn.h>

#include <mutex>
#include <stdexcept>

#include "launch.h"

namespace mtlfast::cuda {
namespace {

Driver open(const char* library) {
  void* handle = dlopen(library, RTLD_NOW | RTLD_LOCAL);
  if (handle == nullptr)
    throw std::runtime_error(std::string("the CUDA driver ") + library +
                             " cannot be opened: " + dlerror());
  Driver found = {};
  const auto find = [&](auto& entry, const char* name) {
    void* symbol = dlsym(handle, name);
    if (symbol == nullptr)
      throw std::runtime_error(std::string(library) + " has no " + name +
                               "; a driver for CUDA 12.1 or newer is needed");
    entry = reinterpret_cast<std::remove_reference_t<decltype(entry)>>(symbol);
  };
#define MTLFAST_FIND(name) find(found.name, #name)
  MTLFAST_FIND(cuInit);
  MTLFAST_FIND(cuGetErrorName);
  MTLFAST_FIND(cuGetErrorString);
  MTLFAST_FIND(cuDeviceGet);
  MTLFAST_FIND(cuDeviceGetAttribute);
  MTLFAST_FIND(cuCtxGetCurrent);
  MTLFAST_FIND(cuCtxSetCurrent);
  MTLFAST_FIND(cuDevicePrimaryCtxRetain);
  MTLFAST_FIND(cuModuleLoadData);
  MTLFAST_FIND(cuModuleGetFunction);
  MTLFAST_FIND(cuFuncSetAttribute);
  MTLFAST_FIND(cuOccupancyMaxActiveBlocksPerMultiprocessor);
  MTLFAST_FIND(cuLaunchKernel);
  MTLFAST_FIND(cuStreamIsCapturing);
#undef MTLFAST_FIND
  const Result result = found.cuInit(0);
  if (result != 0)
    throw std::runtime_error("the CUDA driver does not start: error " + std::to_string(result));
  return found;
}

std::string& simulator() {
  static std::string library;
  return library;
}

}  // namespace

const Driver& driver() {
  if (simulated()) {
    static const Driver simulation = open(simulator().c_str());
    return simulation;
  }
  static const Driver real = open("libcuda.so.1");
  return real;
}

void check(Result result, const std::string& what) {
  if (result == 0) return;
  const char* name = nullptr;
  const char* text = nullptr;
  driver().cuGetErrorName(result, &name);
  driver().cuGetErrorString(result, &text);
  throw std::runtime_error("CUDA: " + what + " failed with " + (name ? name : "an unknown error") +
                           " (" + (text ? text : std::to_string(result)) + ")");
}

void simulate(const std::string& library) {
  forget_modules();
  simulator() = library;
}

bool simulated() { return !simulator().empty(); }

}  // namespace mtlfast::cuda
