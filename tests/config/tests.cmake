# The tests of config/
mirabelle_test(yaml_reader_test SOURCES config/yaml_reader_test.cpp LIBS mirabelle_config)
mirabelle_test(config_test SOURCES config/config_test.cpp LIBS mirabelle_config)

add_executable(run_main_program ${CMAKE_CURRENT_LIST_DIR}/run_main_program.cpp)
target_link_libraries(run_main_program PRIVATE mirabelle_config)
mirabelle_test(run_main_test SOURCES config/run_main_test.cpp LIBS mirabelle_core)
add_dependencies(run_main_test run_main_program)
target_compile_definitions(run_main_test PRIVATE
  RUN_MAIN_PROGRAM="$<TARGET_FILE:run_main_program>" MPIEXEC="${MPIEXEC_EXECUTABLE}")

add_executable(fault_program ${CMAKE_CURRENT_LIST_DIR}/fault_program.cpp)
target_link_libraries(fault_program PRIVATE mirabelle_config)
mirabelle_test(fault_test SOURCES config/fault_test.cpp LIBS mirabelle_core)
add_dependencies(fault_test fault_program)
target_compile_definitions(fault_test PRIVATE
  FAULT_PROGRAM="$<TARGET_FILE:fault_program>" MPIEXEC="${MPIEXEC_EXECUTABLE}")

mirabelle_test(rank_places_test SOURCES config/rank_places_test.cpp LIBS mirabelle_config)
add_executable(preflight_program ${CMAKE_CURRENT_LIST_DIR}/preflight_program.cpp)
target_link_libraries(preflight_program PRIVATE mirabelle_config)
mirabelle_test(preflight_test SOURCES config/preflight_test.cpp LIBS mirabelle_config)
add_dependencies(preflight_test preflight_program)
target_compile_definitions(preflight_test PRIVATE
  PREFLIGHT_PROGRAM="$<TARGET_FILE:preflight_program>" MPIEXEC="${MPIEXEC_EXECUTABLE}"
  PREFLIGHT_LIBRARIES="${CMAKE_LIBRARY_OUTPUT_DIRECTORY}")  # copies of it do not know
