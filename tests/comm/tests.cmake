# The tests of comm/
mirabelle_test(communicator_test SOURCES comm/communicator_test.cpp LIBS mirabelle_comm
               RANKS 1 2 3 4 8)
mirabelle_test(parallel_context_test SOURCES comm/parallel_context_test.cpp LIBS mirabelle_comm
               RANKS 1 2 4 6)
