# Helpers of this project's build. No global flags: every target takes its options from jiboia_options.

# Warnings, CPU choice and floating-point rules of all host code. No fast-math: it would break f64
# checks and the detection of NaN; contraction and unset errno do not.
add_library(jiboia_options INTERFACE)
target_compile_options(jiboia_options INTERFACE
  $<$<COMPILE_LANGUAGE:CXX>:-Wall -Wextra -Wshadow -Wconversion -Wno-sign-conversion -Wpedantic -Wno-missing-field-initializers>
  # GCC 12 finds its own AVX-512 header uninitialised (GCC bug 105593).
  $<$<COMPILE_LANGUAGE:CXX>:-Wno-maybe-uninitialized>
  $<$<COMPILE_LANGUAGE:CXX>:-ffp-contract=fast -fno-math-errno -fno-trapping-math>
  $<$<AND:$<COMPILE_LANGUAGE:CXX>,$<BOOL:${JIBOIA_WERROR}>>:-Werror>
  $<$<AND:$<COMPILE_LANGUAGE:CXX>,$<BOOL:${JIBOIA_NATIVE}>>:-march=native>)
target_include_directories(jiboia_options INTERFACE ${PROJECT_SOURCE_DIR})
# fmt 9 hides its constexpr functions from nvcc; without consteval its format strings are checked
# when they are used.
target_compile_definitions(jiboia_options INTERFACE
  $<$<COMPILE_LANGUAGE:CUDA>:FMT_CONSTEVAL=;FMT_USE_CONSTEXPR=1>)
target_compile_options(jiboia_options INTERFACE
  $<$<COMPILE_LANGUAGE:CUDA>:-Xcompiler=-Wall,-Wextra,-Wno-missing-field-initializers --expt-relaxed-constexpr --extended-lambda>
  $<$<AND:$<COMPILE_LANGUAGE:CUDA>,$<BOOL:${JIBOIA_WERROR}>>:-Werror=all-warnings>)

# jiboia_library(name SOURCES ... PUBLIC libs ... PRIVATE libs ...): one static library a folder.
function(jiboia_library name)
  cmake_parse_arguments(ARG "" "" "SOURCES;PUBLIC;PRIVATE" ${ARGN})
  add_library(${name} STATIC ${ARG_SOURCES})
  target_link_libraries(${name} PUBLIC jiboia_options ${ARG_PUBLIC} PRIVATE ${ARG_PRIVATE})
endfunction()

# jiboia_cuda_sources(library file.cu ...): kernels of a library; with JIBOIA_CUDA=EMULATED they are
# C++ for the CPU (tests/cuda_emulator/README.md).
function(jiboia_cuda_sources library)
  target_sources(${library} PRIVATE ${ARGN})
  if(JIBOIA_CUDA STREQUAL EMULATED)
    set_source_files_properties(${ARGN} PROPERTIES LANGUAGE CXX COMPILE_OPTIONS
      "-xc++;-Wno-unknown-pragmas;-Wno-conversion;-Wno-shadow;-Wno-pedantic;-Wno-unused-function")
  endif()
endfunction()

# What the tests with the label `gpu` need.
add_custom_target(gpu_tests)

# jiboia_program(name SOURCES ...): one installed program.
function(jiboia_program name)
  cmake_parse_arguments(ARG "" "" "SOURCES;PRIVATE" ${ARGN})
  add_executable(${name} ${ARG_SOURCES})
  target_link_libraries(${name} PRIVATE jiboia_train CLI11::CLI11 ${ARG_PRIVATE})
  add_dependencies(gpu_tests ${name})
  install(TARGETS ${name} RUNTIME DESTINATION ${CMAKE_INSTALL_BINDIR})
endfunction()

# jiboia_test(file [GPU | ONLY_GPU] [LABELS ...] [TIMEOUT seconds] [LIBRARIES ...]): builds file.cpp
# of the current folder into one program and registers it with CTest under the folder's and the
# file's name. GPU: its test suites named *Cuda are run by an entry of their own, gpu/folder/file,
# with the label `gpu`; ONLY_GPU: it has no others. Without a GPU these are skipped
# (tests/support/gpu.h).
function(jiboia_test file)
  cmake_parse_arguments(ARG "GPU;ONLY_GPU" "TIMEOUT" "LABELS;LIBRARIES" ${ARGN})
  get_filename_component(folder ${CMAKE_CURRENT_SOURCE_DIR} NAME)
  set(target ${folder}_${file})
  add_executable(${target} ${file}.cpp)
  target_link_libraries(${target} PRIVATE ${ARG_LIBRARIES} jiboia_test_main)
  set_target_properties(${target} PROPERTIES
    RUNTIME_OUTPUT_DIRECTORY ${PROJECT_BINARY_DIR}/tests)
  if(NOT ARG_LABELS)
    set(ARG_LABELS unit)
  endif()
  if(NOT ARG_TIMEOUT)
    set(ARG_TIMEOUT 600)
  endif()
  set(all)
  if(NOT ARG_ONLY_GPU)
    list(APPEND all ${folder}/${file})
    set(filter)
    if(ARG_GPU)
      set(filter --gtest_filter=-*Cuda.*)
    endif()
    add_test(NAME ${folder}/${file} COMMAND ${target} ${filter})
    set_tests_properties(${folder}/${file} PROPERTIES LABELS "${ARG_LABELS}")
  endif()
  if(ARG_GPU OR ARG_ONLY_GPU)
    list(APPEND all gpu/${folder}/${file})
    add_test(NAME gpu/${folder}/${file} COMMAND ${target} --gtest_filter=*Cuda.*)
    set_tests_properties(gpu/${folder}/${file} PROPERTIES LABELS gpu)
  endif()
  if(ARG_GPU OR ARG_ONLY_GPU OR gpu IN_LIST ARG_LABELS)
    add_dependencies(gpu_tests ${target})
  endif()
  set_tests_properties(${all} PROPERTIES TIMEOUT ${ARG_TIMEOUT} SKIP_RETURN_CODE 77)
endfunction()

# jiboia_pytest(file [GPU | ONLY_GPU] [LABELS ...] [TIMEOUT seconds]): registers file.py of the
# current folder with CTest. It runs under JIBOIA_PYTHON, a Python that holds
# scripts/requirements-test.txt; the test reads JIBOIA_BUILD_DIR (programs in bin/, test tools in
# tests/) and JIBOIA_SOURCE_DIR, and may import what is in tests/support and in scripts. GPU: its
# tests with `cuda` in their name are run by an entry of their own, gpu/folder/file.py, with the label
# `gpu` (tests/support/gpu.py); ONLY_GPU: it has no others.
set(JIBOIA_PYTHON "" CACHE FILEPATH "Python for the tests written in it (scripts/test.sh makes one)")
function(jiboia_pytest file)
  cmake_parse_arguments(ARG "GPU;ONLY_GPU" "TIMEOUT" "LABELS" ${ARGN})
  get_filename_component(folder ${CMAKE_CURRENT_SOURCE_DIR} NAME)
  if(NOT JIBOIA_PYTHON)
    message(STATUS "Left out, since JIBOIA_PYTHON is not set: ${folder}/${file}.py")
    return()
  endif()
  if(NOT ARG_LABELS)
    set(ARG_LABELS unit)
  endif()
  if(NOT ARG_TIMEOUT)
    set(ARG_TIMEOUT 600)
  endif()
  set(name ${folder}/${file}.py)
  set(command ${JIBOIA_PYTHON} -B -m pytest -q -p no:cacheprovider
              ${CMAKE_CURRENT_SOURCE_DIR}/${file}.py)
  set(all)
  if(NOT ARG_ONLY_GPU)
    list(APPEND all ${name})
    set(selection)
    if(ARG_GPU)
      set(selection -k "not cuda")
    endif()
    add_test(NAME ${name} COMMAND ${command} ${selection})
    set_tests_properties(${name} PROPERTIES LABELS "${ARG_LABELS}")
  endif()
  if(ARG_GPU OR ARG_ONLY_GPU)
    list(APPEND all gpu/${name})
    add_test(NAME gpu/${name} COMMAND ${command} -k cuda)
    set_tests_properties(gpu/${name} PROPERTIES LABELS gpu
      SKIP_REGULAR_EXPRESSION "(^|\n)[0-9]+ skipped(, [0-9]+ deselected)? in ")
  endif()
  set_tests_properties(${all} PROPERTIES TIMEOUT ${ARG_TIMEOUT}
    ENVIRONMENT "JIBOIA_BUILD_DIR=${PROJECT_BINARY_DIR};JIBOIA_SOURCE_DIR=${PROJECT_SOURCE_DIR};HF_HUB_OFFLINE=1;PYTHONPATH=${PROJECT_SOURCE_DIR}/tests/support:${PROJECT_SOURCE_DIR}/scripts")
endfunction()

# Sets JIBOIA_WITH_CUDA, whether the CUDA backend is built, and readies the compiler for it. The GPUs
# that it is built for are CMAKE_CUDA_ARCHITECTURES: by default those of this machine, else 90a.
# A macro: a language can be enabled at the top only.
macro(jiboia_enable_cuda)
  set(JIBOIA_WITH_CUDA OFF)
  if(JIBOIA_CUDA STREQUAL EMULATED)
    set(JIBOIA_WITH_CUDA ON)
    find_path(JIBOIA_CUDA_INCLUDE cuda_runtime.h REQUIRED
              HINTS /usr/local/cuda/include $ENV{CUDA_PATH}/include)
  elseif(JIBOIA_CUDA)
    find_program(JIBOIA_NVCC nvcc HINTS ${CMAKE_CUDA_COMPILER} $ENV{CUDACXX} /usr/local/cuda/bin
                                        $ENV{CUDA_PATH}/bin)
    set(nvcc_version 0)
    if(JIBOIA_NVCC)
      execute_process(COMMAND ${JIBOIA_NVCC} --version OUTPUT_VARIABLE nvcc_version ERROR_QUIET)
      string(REGEX REPLACE ".*release ([0-9.]+).*" "\\1" nvcc_version "${nvcc_version}")
    endif()
    if(nvcc_version VERSION_GREATER_EQUAL 13)
      set(JIBOIA_WITH_CUDA ON)
      if(NOT CMAKE_CUDA_COMPILER)
        set(CMAKE_CUDA_COMPILER ${JIBOIA_NVCC})
      endif()
      if(NOT CMAKE_CUDA_ARCHITECTURES)
        execute_process(COMMAND nvidia-smi --query-gpu=compute_cap --format=csv,noheader
                        OUTPUT_VARIABLE capabilities ERROR_QUIET RESULT_VARIABLE no_gpu)
        set(CMAKE_CUDA_ARCHITECTURES 90a)
        if(no_gpu EQUAL 0)
          string(REGEX MATCHALL "[0-9]+[.][0-9]" capabilities "${capabilities}")
          string(REPLACE "." "" capabilities "${capabilities}")
          list(REMOVE_DUPLICATES capabilities)
          list(TRANSFORM capabilities REPLACE "^90$" "90a")
          set(CMAKE_CUDA_ARCHITECTURES ${capabilities})
        endif()
      endif()
      enable_language(CUDA)
      set(CMAKE_CUDA_STANDARD 20)
      set(CMAKE_CUDA_STANDARD_REQUIRED ON)
      set(CMAKE_CUDA_FLAGS_RELEASE "-O3 -DNDEBUG")
      if(CMAKE_VERSION VERSION_LESS 3.25.2)  # which do not know that nvcc has C++20
        set(CMAKE_CUDA20_STANDARD_COMPILE_OPTION -std=c++20)
        set(CMAKE_CUDA20_EXTENSION_COMPILE_OPTION -std=c++20)
      endif()
      find_package(CUDAToolkit 13 REQUIRED)
      message(STATUS "CUDA backend for ${CMAKE_CUDA_ARCHITECTURES}, by ${CMAKE_CUDA_COMPILER}")
    elseif(JIBOIA_CUDA STREQUAL AUTO)
      message(STATUS "No CUDA backend: no nvcc of CUDA 13 or later was found")
    else()
      message(FATAL_ERROR "JIBOIA_CUDA is ${JIBOIA_CUDA}, but no nvcc of CUDA 13 or later was found: put it into the PATH, or set CMAKE_CUDA_COMPILER")
    endif()
  endif()
endmacro()
