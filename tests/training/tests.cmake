# The tests of training/
mirabelle_test(trainer_test SOURCES training/trainer_test.cpp LIBS mirabelle_training)
mirabelle_test(checkpoint_test SOURCES training/checkpoint_test.cpp LIBS mirabelle_training)
mirabelle_test(event_file_test SOURCES training/event_file_test.cpp LIBS mirabelle_training)
mirabelle_test(level_weights_test SOURCES training/level_weights_test.cpp LIBS mirabelle_training)
mirabelle_test(data_parallel_test SOURCES training/data_parallel_test.cpp LIBS mirabelle_training
               RANKS 1 2 4)
mirabelle_test(parallel_checkpoint_test SOURCES training/parallel_checkpoint_test.cpp
               LIBS mirabelle_training RANKS 1 2 4)
mirabelle_test(replica_check_test SOURCES training/replica_check_test.cpp
               LIBS mirabelle_training RANKS 1 2 4)
mirabelle_test(layout_test SOURCES training/layout_test.cpp LIBS mirabelle_training RANKS 8)
mirabelle_test(gradient_error_test SOURCES training/gradient_error_test.cpp LIBS mirabelle_training
               RANKS 8)
mirabelle_test(plan_test SOURCES training/plan_test.cpp LIBS mirabelle_training RANKS 8)
mirabelle_test(parallel_plan_test SOURCES training/parallel_plan_test.cpp LIBS mirabelle_training)
