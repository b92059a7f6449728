# The tests of model/
mirabelle_test(transformer_test SOURCES model/transformer_test.cpp LIBS mirabelle_model)
mirabelle_test(batch_queue_test SOURCES model/batch_queue_test.cpp LIBS mirabelle_model)
if(MIRABELLE_CUDA)
  mirabelle_test(cuda_model_test SOURCES model/cuda_model_test.cpp LIBS mirabelle_training)
endif()
