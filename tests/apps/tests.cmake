# The tests of apps/
mirabelle_test(tokenizer_build_test SOURCES apps/tokenizer_build_test.cpp LIBS mirabelle_tokenizer
               APPS mirabelle-tokenizer-build)
mirabelle_test(data_test SOURCES apps/data_test.cpp LIBS mirabelle_data APPS mirabelle-data)
mirabelle_test(evaluate_test SOURCES apps/evaluate_test.cpp LIBS mirabelle_config
               APPS mirabelle-evaluate)
mirabelle_test(recommend_test SOURCES apps/recommend_test.cpp LIBS mirabelle_config
               APPS mirabelle-recommend)
mirabelle_test(convert_program_test SOURCES apps/convert_program_test.cpp LIBS mirabelle_config mirabelle_convert
               APPS mirabelle-convert mirabelle-recommend)
mirabelle_test(train_test SOURCES apps/train_test.cpp LIBS mirabelle_core
               APPS mirabelle-data mirabelle-tokenizer-build mirabelle-train mirabelle-evaluate)
mirabelle_test(stop_test SOURCES apps/stop_test.cpp LIBS mirabelle_core
               APPS mirabelle-data mirabelle-tokenizer-build mirabelle-train compare_checkpoints)
mirabelle_test(bench_test SOURCES apps/bench_test.cpp LIBS mirabelle_core APPS mirabelle-bench)

add_executable(compare_checkpoints ${CMAKE_CURRENT_LIST_DIR}/compare_checkpoints.cpp)
target_link_libraries(compare_checkpoints PRIVATE mirabelle_config)
add_test(NAME kill_test COMMAND ${CMAKE_SOURCE_DIR}/launch/kill_test.py --kills 10 --stalls 1
                                --signals 8 --bin ${CMAKE_BINARY_DIR}/bin)
set_tests_properties(kill_test PROPERTIES LABELS mpi PROCESSORS 2 TIMEOUT 300)
find_package(Python3 REQUIRED COMPONENTS Interpreter)
add_test(NAME count_traffic
         COMMAND Python3::Interpreter ${CMAKE_SOURCE_DIR}/launch/count_traffic.py
                 --bin ${CMAKE_RUNTIME_OUTPUT_DIRECTORY} tensor=2,data=2,zero=2,sequence=1)
set_tests_properties(count_traffic PROPERTIES LABELS mpi PROCESSORS 4 TIMEOUT 120
                     SKIP_RETURN_CODE 77 ENVIRONMENT OMP_NUM_THREADS=1)
foreach(script data_tools/compare_predictions data_tools/recompute_metrics launch/experiment
        launch/reproduce launch/search launch/ablate_tokenizer launch/mpirun)
  get_filename_component(name ${script} NAME)
  add_test(NAME ${name}_test
           COMMAND Python3::Interpreter ${CMAKE_CURRENT_SOURCE_DIR}/${script}_test.py)
endforeach()
