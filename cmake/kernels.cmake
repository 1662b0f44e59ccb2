# Compiles csrc/kernels with nvcc to one file for each group of kernels and architecture, in
# ${CMAKE_BINARY_DIR}/kernels, beside a list of them; setup.py puts all of it into the package.
# In: MTLFAST_BUILD_CUDA, MTLFAST_NVCC, MTLFAST_NVCC_VERSION (cmake/cuda.cmake), TORCH_ARCHS (cmake/probe.py).
# Architectures: -DMTLFAST_CUDA_ARCHS, else the environment variables MTLFAST_CUDA_ARCHS or
# TORCH_CUDA_ARCH_LIST, else all that both nvcc and torch know. They are chosen in cmake/architectures.py.
set(images_dir "${CMAKE_BINARY_DIR}/kernels")
file(REMOVE "${images_dir}/images.json")
if(NOT MTLFAST_BUILD_CUDA)
  return()
endif()

set(wanted "${MTLFAST_CUDA_ARCHS}")
if(wanted STREQUAL "")
  set(wanted "$ENV{MTLFAST_CUDA_ARCHS}")
endif()
if(wanted STREQUAL "")
  set(wanted "$ENV{TORCH_CUDA_ARCH_LIST}")
endif()
execute_process(COMMAND "${MTLFAST_NVCC}" --list-gpu-code
  OUTPUT_VARIABLE nvcc_archs OUTPUT_STRIP_TRAILING_WHITESPACE COMMAND_ERROR_IS_FATAL ANY)
execute_process(
  COMMAND "${Python_EXECUTABLE}" "${CMAKE_CURRENT_LIST_DIR}/architectures.py"
    "${nvcc_archs}" "${TORCH_ARCHS}" "${wanted}"
  OUTPUT_VARIABLE chosen ERROR_VARIABLE complaint RESULT_VARIABLE failed
  ERROR_STRIP_TRAILING_WHITESPACE)
if(failed OR NOT chosen MATCHES "CUBINS=([0-9;]*)\nPTX=([0-9]*)")
  message(FATAL_ERROR "mtlfast: ${complaint}.")
endif()
set(cubins "${CMAKE_MATCH_1}")
set(ptx "${CMAKE_MATCH_2}")
message(STATUS "mtlfast: CUDA kernels for ${cubins}, PTX: ${ptx}")

set(instances "${CMAKE_CURRENT_SOURCE_DIR}/csrc/kernels/instances.h")
set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS "${instances}")
file(STRINGS "${instances}" groups REGEX "^#if defined\\(MTLFAST_GROUP_")
file(GLOB headers CONFIGURE_DEPENDS
  "${CMAKE_CURRENT_SOURCE_DIR}/csrc/kernels/*" "${CMAKE_CURRENT_SOURCE_DIR}/csrc/solvers/*")
# No host code is compiled, so no host compiler is too new.
set(nvcc_flags -std=c++17 -ccbin "${CMAKE_CXX_COMPILER}" -allow-unsupported-compiler)
if(MTLFAST_WERROR)
  list(APPEND nvcc_flags -Werror all-warnings)
endif()

set(images "")
function(compile group kind arch format)
  string(TOLOWER "${group}" name)
  set(image "${images_dir}/${name}.${kind}_${arch}.${format}")
  add_custom_command(OUTPUT "${image}"
    COMMAND "${MTLFAST_NVCC}" ${nvcc_flags} -DMTLFAST_GROUP_${group} -arch=${kind}_${arch}
      -${format} "${CMAKE_CURRENT_SOURCE_DIR}/csrc/kernels/kernels.cu" -o "${image}"
    DEPENDS ${headers} VERBATIM
    COMMENT "nvcc: ${name} kernels for ${kind}_${arch}")
  set(images ${images} "${image}" PARENT_SCOPE)
endfunction()
file(MAKE_DIRECTORY "${images_dir}")
foreach(line IN LISTS groups)
  string(REGEX MATCH "MTLFAST_GROUP_([A-Za-z0-9_]+)" line "${line}")
  set(group "${CMAKE_MATCH_1}")
  foreach(arch IN LISTS cubins)
    compile(${group} sm ${arch} cubin)
  endforeach()
  if(ptx)
    compile(${group} compute ${ptx} ptx)
  endif()
endforeach()

add_custom_command(OUTPUT "${images_dir}/images.json"
  COMMAND "${Python_EXECUTABLE}" "${CMAKE_CURRENT_LIST_DIR}/list_images.py"
    "${images_dir}/images.json" "${MTLFAST_NVCC_VERSION}" ${images}
  DEPENDS ${images} "${CMAKE_CURRENT_LIST_DIR}/list_images.py" VERBATIM
  COMMENT "Listing the CUDA kernels")
add_custom_target(kernels ALL DEPENDS "${images_dir}/images.json")
