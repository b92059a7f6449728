# find_package(mirabelle) gives the libraries of include/mirabelle's folders: mirabelle::mirabelle_data,
# mirabelle::mirabelle_evaluation, ... The project's languages are C (for HDF5) and CXX.
include(CMakeFindDependencyMacro)
find_dependency(MPI COMPONENTS C)
find_dependency(OpenMP COMPONENTS CXX)
find_dependency(HDF5 COMPONENTS C)
find_dependency(OpenSSL COMPONENTS Crypto)
find_dependency(spdlog)
find_dependency(yaml-cpp)
find_dependency(nlohmann_json)
find_dependency(CLI11)
find_dependency(dnnl)
find_dependency(Eigen3 NO_MODULE)
include(${CMAKE_CURRENT_LIST_DIR}/mirabelle-targets.cmake)
