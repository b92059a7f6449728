# The tests of data/
mirabelle_test(synthetic_world_test SOURCES data/synthetic_world_test.cpp LIBS mirabelle_data)
mirabelle_test(batch_loader_test SOURCES data/batch_loader_test.cpp LIBS mirabelle_data)
