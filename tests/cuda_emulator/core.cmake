# What a build with JIBOIA_CUDA=EMULATED has in place of the CUDA runtime, cuBLASLt and nvcc;
# included by core/CMakeLists.txt.
set(emulator ${PROJECT_SOURCE_DIR}/tests/cuda_emulator)
target_sources(jiboia_core PRIVATE
  ${emulator}/blas_emulated.cpp ${emulator}/block.cpp ${emulator}/capture.cpp
  ${emulator}/fiber.cpp ${emulator}/gpu_memory.cpp ${emulator}/runtime.cpp ${emulator}/sort_emulated.cpp
  ${emulator}/static_shared.cpp ${emulator}/trace.cpp)
# Everywhere before the repository's root, so that its core/cuda/launch.cuh is the one included.
target_include_directories(jiboia_options BEFORE INTERFACE ${emulator}/include)
target_include_directories(jiboia_core SYSTEM PUBLIC ${JIBOIA_CUDA_INCLUDE})
message(STATUS "CUDA backend on an emulated GPU, with the headers of ${JIBOIA_CUDA_INCLUDE}")
