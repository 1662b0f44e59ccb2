// The entry points of the CUDA driver that mtlfast uses, for a device whose memory is the host's.
#include <string.h>

#include <map>
#include <string>

#include "fibers.h"
#include "scheduler.h"

namespace {

typedef void (*Kernel)(const void* params);

constexpr int kSuccess = 0;
constexpr int kNotFound = 500;
constexpr int kLaunchFailed = 719;
constexpr int kBlocksPerMultiprocessor = 2;
constexpr int kFloatToDoubleSpeed = 2;

int multiprocessors = 3;
int shared_bytes_of_a_block = 227 * 1024;

std::map<std::string, Kernel>& kernels() {
  static std::map<std::string, Kernel> all;
  return all;
}

bool& capturing() {
  static bool yes = false;
  return yes;
}

}  // namespace

shim::Registered::Registered(const char* name, Kernel run) { kernels()[name] = run; }

extern "C" {

int cuInit(unsigned) { return kSuccess; }

int cuGetErrorName(int result, const char** name) {
  *name = result == kLaunchFailed ? "LAUNCH_FAILED" : "ERROR";
  return kSuccess;
}

int cuGetErrorString(int, const char** text) {
  *text = "reported by the shim";
  return kSuccess;
}

int cuDeviceGet(int* device, int ordinal) {
  *device = ordinal;
  return kSuccess;
}

int cuDeviceGetAttribute(int* value, int attribute, int) {
  switch (attribute) {
    case 16: *value = multiprocessors; break;
    case 87: *value = kFloatToDoubleSpeed; break;
    default: *value = shared_bytes_of_a_block;
  }
  return kSuccess;
}

int cuCtxGetCurrent(void** context) {
  *context = kernels().empty() ? nullptr : &kernels();
  return kSuccess;
}

int cuCtxSetCurrent(void*) { return kSuccess; }

int cuDevicePrimaryCtxRetain(void** context, int) { return cuCtxGetCurrent(context); }

int cuModuleLoadData(void** module, const void*) { return cuCtxGetCurrent(module); }

int cuModuleGetFunction(void** function, void*, const char* name) {
  const auto found = kernels().find(name);
  if (found == kernels().end()) return kNotFound;
  *function = reinterpret_cast<void*>(found->second);
  return kSuccess;
}

int cuFuncSetAttribute(void*, int, int) { return kSuccess; }

int cuOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, void*, int, size_t) {
  *blocks = kBlocksPerMultiprocessor;
  return kSuccess;
}

int cuLaunchKernel(void* function, unsigned blocks, unsigned, unsigned, unsigned threads, unsigned,
                   unsigned, unsigned shared_bytes, void*, void** params, void**) {
  const bool ended =
      shim::run(reinterpret_cast<Kernel>(function), params[0], blocks, threads, shared_bytes);
  return ended ? kSuccess : kLaunchFailed;
}

int cuStreamIsCapturing(void*, int* status) {
  *status = capturing() ? 1 : 0;
  return kSuccess;
}

void shim_capture(int yes) { capturing() = yes != 0; }

void shim_device(int processors, int shared_bytes) {
  multiprocessors = processors;
  shared_bytes_of_a_block = shared_bytes;
}

void shim_order(int order, unsigned seed) {
  shim::set_order(static_cast<shim::Order>(order), seed);
}

void shim_skip(const char* file, int line, long visit) { shim::skip(file, line, visit); }

int shim_sites(char* text, int size) {
  const std::string all = shim::sites();
  strncpy(text, all.c_str(), static_cast<size_t>(size));
  return static_cast<int>(all.size()) < size ? 0 : 1;
}

}  // extern "C"
