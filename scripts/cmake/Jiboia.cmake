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

# jiboia_library(name SOURCES ... PUBLIC libs ... PRIVATE libs ...): one static library a folder.
function(jiboia_library name)
  cmake_parse_arguments(ARG "" "" "SOURCES;PUBLIC;PRIVATE" ${ARGN})
  add_library(${name} STATIC ${ARG_SOURCES})
  target_link_libraries(${name} PUBLIC jiboia_options ${ARG_PUBLIC} PRIVATE ${ARG_PRIVATE})
endfunction()

# jiboia_program(name SOURCES ...): one installed program.
function(jiboia_program name)
  cmake_parse_arguments(ARG "" "" "SOURCES;PRIVATE" ${ARGN})
  add_executable(${name} ${ARG_SOURCES})
  target_link_libraries(${name} PRIVATE jiboia_train CLI11::CLI11 ${ARG_PRIVATE})
  install(TARGETS ${name} RUNTIME DESTINATION ${CMAKE_INSTALL_BINDIR})
endfunction()

# jiboia_test(file [LABELS ...] [LIBRARIES ...]): builds file.cpp of the current folder into one
# program and registers it with CTest under the folder's and the file's name.
function(jiboia_test file)
  cmake_parse_arguments(ARG "" "TIMEOUT" "LABELS;LIBRARIES" ${ARGN})
  get_filename_component(folder ${CMAKE_CURRENT_SOURCE_DIR} NAME)
  set(target ${folder}_${file})
  add_executable(${target} ${file}.cpp)
  target_link_libraries(${target} PRIVATE ${ARG_LIBRARIES} GTest::gtest GTest::gmock
                                          GTest::gtest_main)
  set_target_properties(${target} PROPERTIES
    RUNTIME_OUTPUT_DIRECTORY ${PROJECT_BINARY_DIR}/tests)
  add_test(NAME ${folder}/${file} COMMAND ${target})
  if(NOT ARG_LABELS)
    set(ARG_LABELS unit)
  endif()
  if(NOT ARG_TIMEOUT)
    set(ARG_TIMEOUT 600)
  endif()
  set_tests_properties(${folder}/${file} PROPERTIES LABELS "${ARG_LABELS}" TIMEOUT ${ARG_TIMEOUT})
endfunction()

# jiboia_pytest(file [LABELS ...] [TIMEOUT seconds]): registers file.py of the current folder with
# CTest. It runs under JIBOIA_PYTHON, a Python that holds scripts/requirements-test.txt; the test
# reads JIBOIA_BUILD_DIR (programs in bin/, test tools in tests/) and JIBOIA_SOURCE_DIR, and may
# import what is in tests/support.
set(JIBOIA_PYTHON "" CACHE FILEPATH "Python for the tests written in it (scripts/test.sh makes one)")
function(jiboia_pytest file)
  cmake_parse_arguments(ARG "" "TIMEOUT" "LABELS" ${ARGN})
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
  add_test(NAME ${name}
           COMMAND ${JIBOIA_PYTHON} -B -m pytest -q -p no:cacheprovider
                   ${CMAKE_CURRENT_SOURCE_DIR}/${file}.py)
  set_tests_properties(${name} PROPERTIES LABELS "${ARG_LABELS}" TIMEOUT ${ARG_TIMEOUT}
    ENVIRONMENT "JIBOIA_BUILD_DIR=${PROJECT_BINARY_DIR};JIBOIA_SOURCE_DIR=${PROJECT_SOURCE_DIR};HF_HUB_OFFLINE=1;PYTHONPATH=${PROJECT_SOURCE_DIR}/tests/support")
endfunction()

# Sets JIBOIA_WITH_CUDA, whether the CUDA backend is built: never, in this version.
function(jiboia_detect_cuda)
  if(JIBOIA_CUDA STREQUAL AUTO)
    find_program(JIBOIA_NVCC nvcc HINTS /usr/local/cuda/bin $ENV{CUDA_PATH}/bin)
    if(JIBOIA_NVCC)
      message(STATUS "CUDA compiler found: ${JIBOIA_NVCC} (this version has no CUDA backend yet)")
    endif()
  elseif(JIBOIA_CUDA)
    message(FATAL_ERROR "JIBOIA_CUDA=${JIBOIA_CUDA}: this version has no CUDA backend yet; use AUTO or OFF")
  endif()
  set(JIBOIA_WITH_CUDA OFF PARENT_SCOPE)
endfunction()
