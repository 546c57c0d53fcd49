# The CUDA toolkit, for builds with ATTUNE_CUDA: nvcc, the runtime as a shared library (so that another can stand in for it), cuBLASLt,
# and NCCL. Says what is missing and how to get it.
find_program(NVCC nvcc HINTS ENV CUDACXX ENV CUDA_HOME ENV CUDA_PATH PATHS /usr/local/cuda PATH_SUFFIXES bin)
if(NOT NVCC)
    message(FATAL_ERROR "ATTUNE_CUDA: no nvcc. Install the CUDA toolkit (12.0 or later) and put its bin directory into PATH, or set "
                        "CUDA_HOME; without a GPU the preset cpu needs none of it.")
endif()
set(CMAKE_CUDA_COMPILER ${NVCC})
# A100 and Hopper as machine code; later GPUs compile the PTX when they first see it.
if(NOT CMAKE_CUDA_ARCHITECTURES)
    set(CMAKE_CUDA_ARCHITECTURES 80-real 90)
endif()
set(CMAKE_CUDA_RUNTIME_LIBRARY Shared)
set(CMAKE_CUDA_STANDARD 17)
set(CMAKE_CUDA_STANDARD_REQUIRED ON)
set(CMAKE_CUDA_COMPILER_LAUNCHER ${CMAKE_C_COMPILER_LAUNCHER})
enable_language(CUDA)
string(APPEND CMAKE_CUDA_FLAGS " -Werror all-warnings -lineinfo -Xcompiler=-Wall,-Wextra,-Wno-unknown-pragmas")

find_package(CUDAToolkit 12.0)
if(NOT TARGET CUDA::cudart OR NOT TARGET CUDA::cublasLt)
    message(FATAL_ERROR "ATTUNE_CUDA: ${NVCC} is there, but not its runtime and cuBLAS of version 12 or later (libcudart.so, libcublasLt.so): "
                        "install the rest of the CUDA toolkit (Debian and Ubuntu: cuda-libraries-dev-12-x of NVIDIA's repository).")
endif()

find_path(NCCL_INCLUDE_DIR nccl.h HINTS ENV NCCL_HOME ${CUDAToolkit_INCLUDE_DIRS} PATH_SUFFIXES include)
find_library(NCCL_LIBRARY nccl HINTS ENV NCCL_HOME ${CUDAToolkit_LIBRARY_DIR} PATH_SUFFIXES lib lib64)
if(NOT EXISTS "${NCCL_INCLUDE_DIR}/nccl.h" OR NOT EXISTS "${NCCL_LIBRARY}")
    message(FATAL_ERROR "ATTUNE_CUDA: no NCCL (nccl.h, libnccl.so), which connects the ranks' GPUs. Install libnccl-dev of NVIDIA's repository, "
                        "or set NCCL_HOME.")
endif()
file(STRINGS ${NCCL_INCLUDE_DIR}/nccl.h nccl REGEX "define NCCL_(MAJOR|MINOR|PATCH) ")
string(REGEX REPLACE "[^0-9]+([0-9]+)[^0-9]+([0-9]+)[^0-9]+([0-9]+).*" "\\1.\\2.\\3" NCCL_VERSION "${nccl}")
set(CUDA_LIBRARIES_TEXT " LIBRARY(\"CUDA\", \"${CUDAToolkit_VERSION}\") LIBRARY(\"NCCL\", \"${NCCL_VERSION}\")")
