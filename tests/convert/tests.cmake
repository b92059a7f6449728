# The tests of convert/
mirabelle_test(safetensors_test SOURCES convert/safetensors_test.cpp LIBS mirabelle_convert)
mirabelle_test(vocabulary_map_test SOURCES convert/vocabulary_map_test.cpp LIBS mirabelle_convert)
mirabelle_test(hugging_face_test SOURCES convert/hugging_face_test.cpp LIBS mirabelle_convert)
target_compile_definitions(hugging_face_test PRIVATE
                           MIRABELLE_FIXTURES="${CMAKE_CURRENT_SOURCE_DIR}/fixtures")
mirabelle_test(initial_weights_test SOURCES convert/initial_weights_test.cpp LIBS mirabelle_convert)
