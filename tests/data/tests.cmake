# The tests of data/
mirabelle_test(synthetic_world_test SOURCES data/synthetic_world_test.cpp LIBS mirabelle_data)
mirabelle_test(batch_loader_test SOURCES data/batch_loader_test.cpp LIBS mirabelle_data)
mirabelle_test(corpus_test SOURCES data/corpus_test.cpp LIBS mirabelle_data)
mirabelle_test(dataset_folder_test SOURCES data/dataset_folder_test.cpp LIBS mirabelle_data)
mirabelle_test(npy_test SOURCES data/npy_test.cpp LIBS mirabelle_data)
mirabelle_test(external_sorter_test SOURCES data/external_sorter_test.cpp LIBS mirabelle_data)
