// The CUDA driver, opened at run time: mtlfast/_C needs no CUDA to be built or imported.
#pragma once

#include <cstddef>
#include <string>

namespace mtlfast::cuda {

typedef int Result;
typedef int Device;
typedef struct OpaqueContext* Context;
typedef struct OpaqueModule* Module;
typedef struct OpaqueFunction* Function;
typedef struct OpaqueStream* Stream;

// The entry points in use, by the names and with the signatures of the driver's interface.
struct Driver {
  Result (*cuInit)(unsigned flags);
  Result (*cuGetErrorName)(Result result, const char** name);
  Result (*cuGetErrorString)(Result result, const char** text);
  Result (*cuDeviceGet)(Device* device, int ordinal);
  Result (*cuDeviceGetAttribute)(int* value, int attribute, Device device);
  Result (*cuCtxGetCurrent)(Context* context);
  Result (*cuCtxSetCurrent)(Context context);
  Result (*cuDevicePrimaryCtxRetain)(Context* context, Device device);
  Result (*cuModuleLoadData)(Module* module, const void* image);
  Result (*cuModuleGetFunction)(Function* function, Module module, const char* name);
  Result (*cuFuncSetAttribute)(Function function, int attribute, int value);
  Result (*cuOccupancyMaxActiveBlocksPerMultiprocessor)(int* blocks, Function function, int threads,
                                                        size_t shared_bytes);
  Result (*cuLaunchKernel)(Function function, unsigned grid_x, unsigned grid_y, unsigned grid_z,
                           unsigned block_x, unsigned block_y, unsigned block_z,
                           unsigned shared_bytes, Stream stream, void** params, void** extra);
  Result (*cuStreamIsCapturing)(Stream stream, int* status);
};

// Numbers of the driver's interface.
constexpr Result kNotFound = 500;
constexpr int kMultiprocessors = 16;  // device attributes
constexpr int kFloatToDoubleSpeed = 87;
constexpr int kMaxSharedBytesOptIn = 97;
constexpr int kMaxDynamicSharedBytes = 8;  // function attribute

// The driver in use; opened by the first call. RuntimeError where there is none.
const Driver& driver();

// Raises what a call of the driver answered, unless it is success; `what` says what was tried.
void check(Result result, const std::string& what);

// For tests: takes the entry points from another library, whose device is the host's memory; "" goes back. While it is
// in force CPU tensors take the way of CUDA tensors.
void simulate(const std::string& library);
bool simulated();

}  // namespace mtlfast::cuda
