# Decides whether CUDA kernels can be built: for a CUDA build of torch AND an nvcc of the same major
# version. Whether a GPU is present plays no part: build machines often have none.
# In:  TORCH_CUDA (torch.version.cuda, may be empty), MTLFAST_CUDA = auto | on | off.
# Out: MTLFAST_BUILD_CUDA, MTLFAST_NVCC. This version has no CUDA kernels, so nothing reads them yet.
# nvcc is searched in CUDA_HOME, CUDA_PATH and PATH; -DMTLFAST_NVCC=... names another one.
# Runs alone too: cmake -DTORCH_CUDA=13.0 -P cmake/cuda.cmake
set(MTLFAST_BUILD_CUDA OFF)
if(NOT DEFINED MTLFAST_CUDA)
  set(MTLFAST_CUDA auto)
endif()
string(TOLOWER "${MTLFAST_CUDA}" MTLFAST_CUDA)
if(NOT MTLFAST_CUDA MATCHES "^(auto|on|off)$")
  message(FATAL_ERROR "MTLFAST_CUDA: expected auto, on or off, found '${MTLFAST_CUDA}'.")
endif()

set(nvcc_version "")
find_program(MTLFAST_NVCC nvcc NO_CACHE
  HINTS ENV CUDA_HOME ENV CUDA_PATH PATHS /usr/local/cuda PATH_SUFFIXES bin)
if(MTLFAST_NVCC)
  execute_process(COMMAND "${MTLFAST_NVCC}" --version OUTPUT_VARIABLE nvcc_says ERROR_QUIET)
  if(nvcc_says MATCHES "release ([0-9]+\\.[0-9]+)")
    set(nvcc_version "${CMAKE_MATCH_1}")
  endif()
endif()
string(REGEX MATCH "^[0-9]+" torch_major "${TORCH_CUDA}")
string(REGEX MATCH "^[0-9]+" nvcc_major "${nvcc_version}")

set(missing "")
if(TORCH_CUDA STREQUAL "")
  set(missing "this torch is a CPU build; for CUDA install a CUDA build of torch first")
elseif(nvcc_version STREQUAL "")
  set(missing "torch is built for CUDA ${TORCH_CUDA} and no nvcc was found; install the CUDA ${torch_major} toolkit or set CUDA_HOME")
elseif(NOT torch_major STREQUAL nvcc_major)
  set(missing "torch is built for CUDA ${TORCH_CUDA} and ${MTLFAST_NVCC} is CUDA ${nvcc_version}; install the CUDA ${torch_major} toolkit or set CUDA_HOME to it")
endif()

if(MTLFAST_CUDA STREQUAL "off")
  message(STATUS "mtlfast: CUDA is turned off (MTLFAST_CUDA=off).")
elseif(missing STREQUAL "")
  set(MTLFAST_BUILD_CUDA ON)
  message(STATUS "mtlfast: torch and ${MTLFAST_NVCC} agree on CUDA ${torch_major}; this version has no CUDA kernels yet, so only the CPU kernels are built.")
elseif(MTLFAST_CUDA STREQUAL "on")
  message(FATAL_ERROR "mtlfast: MTLFAST_CUDA=on, but ${missing}.")
else()
  message(STATUS "mtlfast: building the CPU kernels only: ${missing}.")
endif()
