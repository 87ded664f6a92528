# Everything that comes from outside, one block each. The library itself needs a C compiler with
# OpenMP and nothing else; whatever a part needs beyond that is optional, and its block sets
# STQUANT_WITH_<NAME>, which src/CMakeLists.txt reads.

find_package(OpenMP COMPONENTS C)
if(NOT OpenMP_C_FOUND)
  message(FATAL_ERROR "No OpenMP for ${CMAKE_C_COMPILER}: with clang, install libomp-dev; "
                      "gcc brings its own.")
endif()

# --- CUDA: src/cuda, code for compute capability 8.0 and 9.0, and PTX for later ones ---
set(STQUANT_WITH_CUDA OFF)
file(GLOB stquant_cuda_sources CONFIGURE_DEPENDS ${PROJECT_SOURCE_DIR}/src/cuda/*.cu)
if(STQUANT_CUDA STREQUAL "ON" OR (STQUANT_CUDA STREQUAL "AUTO" AND stquant_cuda_sources))
  include(CheckLanguage)
  check_language(CUDA)
  if(CMAKE_CUDA_COMPILER)
    if(NOT DEFINED CMAKE_CUDA_ARCHITECTURES)
      set(CMAKE_CUDA_ARCHITECTURES "80-real;90")
    endif()
    enable_language(CUDA)
    find_package(CUDAToolkit REQUIRED)
    set(STQUANT_WITH_CUDA ON)
  elseif(STQUANT_CUDA STREQUAL "ON")
    message(FATAL_ERROR "STQUANT_CUDA is ON, but there is no CUDA compiler: put nvcc on the PATH, "
                        "set CUDACXX, or configure with -DSTQUANT_CUDA=OFF.")
  endif()
endif()

# --- checkpoints: jansson (the headers are JSON) and xxHash (checksums; its header alone, compiled in) ---
set(STQUANT_WITH_CHECKPOINT OFF)
if(NOT STQUANT_CHECKPOINT STREQUAL "OFF")
  find_package(PkgConfig)
  find_path(XXHASH_INCLUDE_DIR xxhash.h)
  if(PkgConfig_FOUND)
    pkg_check_modules(JANSSON IMPORTED_TARGET jansson)
  endif()
  if(XXHASH_INCLUDE_DIR AND JANSSON_FOUND)
    set(STQUANT_WITH_CHECKPOINT ON)
  elseif(STQUANT_CHECKPOINT STREQUAL "ON" OR STQUANT_APPS)
    message(FATAL_ERROR "Checkpoints need jansson, xxHash and pkg-config: run scripts/install-deps, or "
                        "configure with -DSTQUANT_CHECKPOINT=OFF -DSTQUANT_APPS=OFF for a library without them.")
  endif()
elseif(STQUANT_APPS)
  message(FATAL_ERROR "The command needs checkpoints: configure with -DSTQUANT_APPS=OFF, too.")
endif()

# --- the command: oneDNN (matrix products), jansson (JSON), zlib (compressed data files), PCRE2 (GPT-2's words) ---
if(STQUANT_APPS)
  find_package(PkgConfig)
  find_package(ZLIB)
  # Not by oneDNN's own CMake package, which also wants the headers of OpenCL.
  find_path(DNNL_INCLUDE_DIR dnnl.h)
  find_library(DNNL_LIBRARY dnnl)
  if(PkgConfig_FOUND)
    pkg_check_modules(PCRE2 IMPORTED_TARGET libpcre2-8)
  endif()
  if(NOT (ZLIB_FOUND AND DNNL_INCLUDE_DIR AND DNNL_LIBRARY AND JANSSON_FOUND AND PCRE2_FOUND))
    message(FATAL_ERROR "The command needs oneDNN, jansson, zlib, PCRE2 and pkg-config: run "
                        "scripts/install-deps, or configure with -DSTQUANT_APPS=OFF for the library alone.")
  endif()
  add_library(dnnl UNKNOWN IMPORTED)
  set_target_properties(dnnl PROPERTIES IMPORTED_LOCATION ${DNNL_LIBRARY}
    INTERFACE_INCLUDE_DIRECTORIES ${DNNL_INCLUDE_DIR})
endif()

# --- MPI: the communicator over MPI, a library of its own (stquant-mpi) ---
set(STQUANT_WITH_MPI OFF)
if(STQUANT_APPS)
  find_package(MPI COMPONENTS C)
  if(MPI_C_FOUND)
    set(STQUANT_WITH_MPI ON)
  endif()
endif()

# --- the tests: cmocka ---
if(STQUANT_TESTS)
  find_path(CMOCKA_INCLUDE_DIR cmocka.h)
  find_library(CMOCKA_LIBRARY cmocka)
  if(NOT CMOCKA_INCLUDE_DIR OR NOT CMOCKA_LIBRARY)
    message(FATAL_ERROR "The tests need cmocka: run scripts/install-deps, or configure with "
                        "-DSTQUANT_TESTS=OFF.")
  endif()
endif()
