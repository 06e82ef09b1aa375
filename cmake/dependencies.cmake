# Everything comes from the distribution; scripts/install_dependencies.sh names the packages.
find_package(PkgConfig REQUIRED)
find_package(OpenMP REQUIRED COMPONENTS CXX)
find_package(dnnl REQUIRED)
set(MPI_CXX_SKIP_MPICXX ON)  # no deprecated C++ bindings from mpi.h
find_package(MPI REQUIRED COMPONENTS CXX)
set(HDF5_PREFER_PARALLEL OFF)
pkg_check_modules(HDF5 REQUIRED IMPORTED_TARGET hdf5-serial)
find_package(yaml-cpp REQUIRED)
find_package(CLI11 REQUIRED)
find_package(spdlog REQUIRED)
find_package(nlohmann_json REQUIRED)
pkg_check_modules(SENTENCEPIECE REQUIRED IMPORTED_TARGET sentencepiece)
pkg_check_modules(XXHASH REQUIRED IMPORTED_TARGET libxxhash)
find_package(OpenSSL REQUIRED COMPONENTS Crypto)  # SHA-256
