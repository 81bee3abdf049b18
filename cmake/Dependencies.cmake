# Every third party, found once: the pip wheel of torch, and libraries of the distribution.
set(PRULONG_TORCH_VERSION 2.11)
set(PRULONG_PORTABLE_CUDA_ARCHS 80 86-real 89-real 90-real 100-real 120-real CACHE STRING
    "CUDA architectures of the portable kernels, the first as PTX too: other GPUs compile that when they load it")

find_program(PRULONG_PYTHON NAMES python python3 HINTS ${PROJECT_SOURCE_DIR}/.venv/bin NO_DEFAULT_PATH)
if(NOT PRULONG_PYTHON)
  find_program(PRULONG_PYTHON NAMES python3 REQUIRED)
endif()
if(NOT Torch_DIR)
  execute_process(COMMAND ${PRULONG_PYTHON} -c "import torch; print(torch.utils.cmake_prefix_path)"
                  OUTPUT_VARIABLE torch_prefix OUTPUT_STRIP_TRAILING_WHITESPACE RESULT_VARIABLE status ERROR_QUIET)
  if(NOT status EQUAL 0)
    message(FATAL_ERROR "${PRULONG_PYTHON} has no torch: run scripts/setup.sh, or pass -DTorch_DIR=<torch>/share/cmake/Torch")
  endif()
  list(APPEND CMAKE_PREFIX_PATH ${torch_prefix})
endif()
if(PRULONG_BUILD_PYTHON)
  set(Python_EXECUTABLE ${PRULONG_PYTHON})
  find_package(Python COMPONENTS Interpreter Development.Module)
  if(NOT Python_FOUND)
    message(FATAL_ERROR "${PRULONG_PYTHON} has no headers (Python.h): run scripts/setup.sh, or pass -DPRULONG_BUILD_PYTHON=OFF")
  endif()
endif()
set(TORCH_CUDA_ARCH_LIST 9.0a)  # before find_package, or torch adds every architecture it knows
find_package(Torch ${PRULONG_TORCH_VERSION} REQUIRED)
if(NOT Torch_VERSION VERSION_GREATER_EQUAL ${PRULONG_TORCH_VERSION} OR Torch_VERSION VERSION_GREATER_EQUAL 2.12)
  message(FATAL_ERROR "torch ${Torch_VERSION} found, ${PRULONG_TORCH_VERSION} needed: run scripts/setup.sh")
endif()
set(CMAKE_CUDA_ARCHITECTURES 90a)  # the Hopper kernels, their tests and benches; portable ones name their own
# Torch's package edits the global CUDA flags; our kernels are compiled with ours alone.
string(REGEX REPLACE "-gencode [^ ]+|-gencode;[^ ;]+|-D__CUDA_NO_[A-Z0-9_]+__" "" CMAKE_CUDA_FLAGS "${CMAKE_CUDA_FLAGS}")

add_library(prulong_torch INTERFACE)
# SYSTEM: torch's headers are not ours to warn about.
target_include_directories(prulong_torch SYSTEM INTERFACE ${TORCH_INCLUDE_DIRS})
# Torch's headers include the operators that they need, not all two thousand of them.
target_compile_definitions(prulong_torch INTERFACE AT_PER_OPERATOR_HEADERS)
# libstdc++ first: torch's libraries export an older std::filesystem of their own, whose remove_all crashes our programs.
target_link_libraries(prulong_torch INTERFACE -lstdc++ ${TORCH_LIBRARIES})

# Headers of the NCCL that this torch was built with: its communicators' options embed NCCL's.
find_path(PRULONG_NCCL_INCLUDE nccl.h REQUIRED HINTS ${TORCH_INSTALL_PREFIX}/../nvidia/nccl/include)

find_package(nlohmann_json REQUIRED)
find_package(spdlog REQUIRED)
find_package(cxxopts REQUIRED)
find_package(yaml-cpp REQUIRED)
if(NOT TARGET yaml-cpp::yaml-cpp)  # Debian 12 names the target without a namespace
  add_library(yaml-cpp::yaml-cpp ALIAS yaml-cpp)
endif()
find_package(OpenSSL REQUIRED COMPONENTS Crypto)
foreach(name zstd xxhash)  # the distributions ship no CMake package of these
  find_library(PRULONG_${name}_LIBRARY ${name} REQUIRED)
  find_path(PRULONG_${name}_INCLUDE ${name}.h REQUIRED)
  add_library(prulong_${name} INTERFACE)
  target_link_libraries(prulong_${name} INTERFACE ${PRULONG_${name}_LIBRARY})
  target_include_directories(prulong_${name} SYSTEM INTERFACE ${PRULONG_${name}_INCLUDE})
endforeach()
if(PRULONG_BUILD_TESTS)
  if(PRULONG_EMULATION)
    find_package(Boost CONFIG REQUIRED COMPONENTS context)  # fibers
  endif()
  find_package(Catch2 REQUIRED)
endif()
