# cmake --install and, of a CPU build, a Debian package (cpack): executables, libraries and headers for
# programs of one's own (find_package(mirabelle)), configurations, launch scripts, documentation.
set(programs mirabelle-data mirabelle-tokenizer-build mirabelle-train mirabelle-evaluate
    mirabelle-recommend mirabelle-convert mirabelle-bench)
install(TARGETS ${programs})
install(TARGETS mirabelle_options mirabelle_core mirabelle_kernels mirabelle_cpu_kernels
                mirabelle_comm mirabelle_data mirabelle_tokenizer mirabelle_model
                mirabelle_training mirabelle_convert mirabelle_evaluation mirabelle_config
        EXPORT mirabelle DESTINATION ${MIRABELLE_LIBRARIES})
if(MIRABELLE_CUDA)
  install(TARGETS mirabelle_cuda_kernels EXPORT mirabelle DESTINATION ${MIRABELLE_LIBRARIES})
endif()
foreach(level IN ITEMS v3 v4)
  if(TARGET mirabelle_cpu_kernels_${level})
    install(TARGETS mirabelle_cpu_kernels_${level}
            DESTINATION ${MIRABELLE_LIBRARIES}/glibc-hwcaps/x86-64-${level})
  endif()
endforeach()

set(package_folder ${CMAKE_INSTALL_LIBDIR}/cmake/mirabelle)
install(EXPORT mirabelle NAMESPACE mirabelle:: FILE mirabelle-targets.cmake
        DESTINATION ${package_folder})
include(CMakePackageConfigHelpers)
write_basic_package_version_file(mirabelle-config-version.cmake COMPATIBILITY ExactVersion)
install(FILES cmake/mirabelle-config.cmake
              ${CMAKE_CURRENT_BINARY_DIR}/mirabelle-config-version.cmake
        DESTINATION ${package_folder})
install(DIRECTORY include/mirabelle TYPE INCLUDE)

set(share ${CMAKE_INSTALL_DATADIR}/mirabelle)
install(DIRECTORY configs DESTINATION ${share})
install(PROGRAMS launch/mpirun.sh launch/quickstart.sh launch/tokenizer.sbatch launch/train.sbatch
                 launch/evaluate.sbatch DESTINATION ${share}/launch)
install(FILES launch/hosts.example DESTINATION ${share}/launch)
install(FILES README.md TYPE DOC)
install(FILES LICENSE TYPE DOC RENAME copyright)
install(DIRECTORY docs/ TYPE DOC)

if(MIRABELLE_CUDA)
  return()  # NVIDIA's libraries are in no Debian package; launch/bundle.sh packs such a build
endif()
set(CPACK_GENERATOR DEB)
set(CPACK_PACKAGE_CONTACT "the maintainers of Mirabelle")
set(CPACK_PACKAGE_DESCRIPTION_SUMMARY
    "distributed training of semantic-ID recommenders for generative retrieval")
set(CPACK_PACKAGING_INSTALL_PREFIX /usr)
set(CPACK_STRIP_FILES ON)
set(CPACK_DEBIAN_FILE_NAME DEB-DEFAULT)
set(CPACK_DEBIAN_PACKAGE_SECTION science)
set(CPACK_DEBIAN_PACKAGE_SHLIBDEPS ON)  # what the executables load; mpirun is started besides
set(CPACK_DEBIAN_PACKAGE_SHLIBDEPS_PRIVATE_DIRS ${CMAKE_LIBRARY_OUTPUT_DIRECTORY})
set(CPACK_DEBIAN_PACKAGE_DEPENDS openmpi-bin)
set(CPACK_DEBIAN_PACKAGE_RECOMMENDS openssh-client)
set(CPACK_DEBIAN_PACKAGE_SUGGESTS slurm-client)
include(CPack)
