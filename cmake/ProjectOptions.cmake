# One place for language level, warnings, sanitizers, linker and compiler cache.
set(CMAKE_CXX_STANDARD 20)
set(CMAKE_CXX_STANDARD_REQUIRED ON)
set(CMAKE_CXX_EXTENSIONS OFF)
set(CMAKE_CXX_VISIBILITY_PRESET hidden)
set(CMAKE_VISIBILITY_INLINES_HIDDEN ON)
# -O2: the heavy loops are torch's and, at -O3, our row kernels'; -O3 everywhere only compiles longer.
set(CMAKE_CXX_FLAGS_RELEASE "-O2 -DNDEBUG")
# CMake 3.25 does not know C++20 for nvcc 13; kernels are C++17 by rule.
set(CMAKE_CUDA_STANDARD 17)
set(CMAKE_CUDA_STANDARD_REQUIRED ON)

find_program(PRULONG_CCACHE ccache)
if(PRULONG_CCACHE)
  # Without these, ccache never hits behind a precompiled header.
  set(launcher ${CMAKE_COMMAND} -E env
      CCACHE_SLOPPINESS=pch_defines,time_macros,include_file_mtime,include_file_ctime ${PRULONG_CCACHE})
  set(CMAKE_CXX_COMPILER_LAUNCHER ${launcher})
  set(CMAKE_CUDA_COMPILER_LAUNCHER ${launcher})
endif()

add_library(prulong_options INTERFACE)
# -fPIC instead of POSITION_INDEPENDENT_CODE: executables may then reuse a library's precompiled header.
target_compile_options(prulong_options INTERFACE
  $<$<COMPILE_LANGUAGE:CXX>:-fPIC -Wall -Wextra -Wpedantic -Wshadow -Wconversion -Wno-sign-conversion -Winvalid-pch>
  $<$<COMPILE_LANGUAGE:CUDA>:-Xcompiler=-fPIC,-Wall,-Wextra>)
if(PRULONG_WERROR)
  target_compile_options(prulong_options INTERFACE
    $<$<COMPILE_LANGUAGE:CXX>:-Werror> $<$<COMPILE_LANGUAGE:CUDA>:-Werror=all-warnings>)
endif()
if(PRULONG_SANITIZERS)
  # g++ calls parts of std::function and of Catch2 uninitialised once they are instrumented.
  target_compile_options(prulong_options INTERFACE
    $<$<COMPILE_LANGUAGE:CXX>:-fsanitize=${PRULONG_SANITIZERS} -fno-sanitize-recover=all -fno-omit-frame-pointer
                              -Wno-maybe-uninitialized>)
  target_link_options(prulong_options INTERFACE -fsanitize=${PRULONG_SANITIZERS})
endif()
# prulong_use_torch_pch(<target> [EXCEPT <sources>]): the precompiled torch headers (csrc/torch_pch.h), made once beside
# prulong_ops. EXCEPT: sources without torch, which would only pay for loading them.
function(prulong_use_torch_pch target)
  cmake_parse_arguments(ARG "" "" "EXCEPT" ${ARGN})
  if(PRULONG_PCH)
    target_precompile_headers(${target} REUSE_FROM prulong_ops)
    set_source_files_properties(${ARG_EXCEPT} PROPERTIES SKIP_PRECOMPILE_HEADERS ON)
  endif()
endfunction()

# For libraries that Python loads.
function(prulong_check_shared_libstdcxx target)
  add_custom_command(TARGET ${target} POST_BUILD VERBATIM COMMAND ${CMAKE_COMMAND} -DREADELF=${CMAKE_READELF}
    -DLIBRARY=$<TARGET_FILE:${target}> -P ${PROJECT_SOURCE_DIR}/cmake/CheckSharedLibstdcxx.cmake)
endfunction()

find_program(PRULONG_LLD ld.lld)
if(PRULONG_LLD)
  target_link_options(prulong_options INTERFACE -fuse-ld=lld)
endif()
target_include_directories(prulong_options INTERFACE ${PROJECT_SOURCE_DIR})
