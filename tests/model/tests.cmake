# The tests of model/
mirabelle_test(transformer_test SOURCES model/transformer_test.cpp LIBS mirabelle_model)
mirabelle_test(batch_queue_test SOURCES model/batch_queue_test.cpp LIBS mirabelle_model)
mirabelle_test(rotary_scaling_test SOURCES model/rotary_scaling_test.cpp LIBS mirabelle_model)
mirabelle_test(precision_test SOURCES model/precision_test.cpp LIBS mirabelle_training)
mirabelle_test(tensor_parallel_test SOURCES model/tensor_parallel_test.cpp
               LIBS mirabelle_model RANKS 1 2 4)
