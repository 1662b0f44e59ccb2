# Decides whether CUDA kernels can be built: for a CUDA build of torch AND an nvcc of the same major
# version. Whether a GPU is present plays no part: build machines often have none.
# In:  TORCH_CUDA (torch.version.cuda, may be empty), MTLFAST_CUDA = auto | on | off | kernels; the last
#      asks for an nvcc only, so that a machine with a CPU build of torch can test the build.
# Out: MTLFAST_BUILD_CUDA, MTLFAST_NVCC, MTLFAST_NVCC_VERSION.
# nvcc is searched in CUDA_HOME, CUDA_PATH and PATH; -DMTLFAST_NVCC=... names another one.
# Runs alone too: cmake -DTORCH_CUDA=13.0 -P cmake/cuda.cmake
set(MTLFAST_BUILD_CUDA OFF)
if(NOT DEFINED MTLFAST_CUDA)
  set(MTLFAST_CUDA auto)
endif()
string(TOLOWER "${MTLFAST_CUDA}" MTLFAST_CUDA)
if(NOT MTLFAST_CUDA MATCHES "^(auto|on|off|kernels)$")
  message(FATAL_ERROR "MTLFAST_CUDA: expected auto, on, off or kernels, found '${MTLFAST_CUDA}'.")
endif()

set(MTLFAST_NVCC_VERSION "")
find_program(MTLFAST_NVCC nvcc NO_CACHE
  HINTS ENV CUDA_HOME ENV CUDA_PATH PATHS /usr/local/cuda PATH_SUFFIXES bin)
if(MTLFAST_NVCC)
  execute_process(COMMAND "${MTLFAST_NVCC}" --version OUTPUT_VARIABLE nvcc_says ERROR_QUIET)
  if(nvcc_says MATCHES "release ([0-9]+\\.[0-9]+)")
    set(MTLFAST_NVCC_VERSION "${CMAKE_MATCH_1}")
  endif()
endif()
string(REGEX MATCH "^[0-9]+" torch_major "${TORCH_CUDA}")
string(REGEX MATCH "^[0-9]+" nvcc_major "${MTLFAST_NVCC_VERSION}")

set(missing "")
if(MTLFAST_CUDA STREQUAL "kernels")
  if(MTLFAST_NVCC_VERSION STREQUAL "")
    set(missing "no nvcc was found; install the CUDA toolkit or set CUDA_HOME")
  endif()
elseif(TORCH_CUDA STREQUAL "")
  set(missing "this torch is a CPU build; for CUDA install a CUDA build of torch first")
elseif(MTLFAST_NVCC_VERSION STREQUAL "")
  set(missing "torch is built for CUDA ${TORCH_CUDA} and no nvcc was found; install the CUDA ${torch_major} toolkit or set CUDA_HOME")
elseif(NOT torch_major STREQUAL nvcc_major)
  set(missing "torch is built for CUDA ${TORCH_CUDA} and ${MTLFAST_NVCC} is CUDA ${MTLFAST_NVCC_VERSION}; install the CUDA ${torch_major} toolkit or set CUDA_HOME to it")
endif()
if(missing STREQUAL "" AND MTLFAST_NVCC_VERSION VERSION_LESS 12.1)
  set(missing "${MTLFAST_NVCC} is CUDA ${MTLFAST_NVCC_VERSION}, and the kernels need 12.1 or newer")
endif()

if(MTLFAST_CUDA STREQUAL "off")
  message(STATUS "mtlfast: CUDA is turned off (MTLFAST_CUDA=off).")
elseif(missing STREQUAL "")
  set(MTLFAST_BUILD_CUDA ON)
  if(MTLFAST_CUDA STREQUAL "kernels")
    message(STATUS "mtlfast: building the CUDA kernels with ${MTLFAST_NVCC}, whatever torch is (MTLFAST_CUDA=kernels).")
  else()
    message(STATUS "mtlfast: torch and ${MTLFAST_NVCC} agree on CUDA ${torch_major}: building the CUDA kernels.")
  endif()
elseif(MTLFAST_CUDA MATCHES "^(on|kernels)$")
  message(FATAL_ERROR "mtlfast: MTLFAST_CUDA=${MTLFAST_CUDA}, but ${missing}.")
else()
  message(STATUS "mtlfast: building the CPU kernels only: ${missing}.")
endif()
