# The tests of data/
mirabelle_test(synthetic_world_test SOURCES data/synthetic_world_test.cpp LIBS mirabelle_data)
