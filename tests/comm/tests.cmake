# The tests of comm/
mirabelle_test(communicator_test SOURCES comm/communicator_test.cpp LIBS mirabelle_comm RANKS 1 2 4)
mirabelle_test(gradient_reducer_test SOURCES comm/gradient_reducer_test.cpp LIBS mirabelle_comm
               RANKS 1 2 4)
