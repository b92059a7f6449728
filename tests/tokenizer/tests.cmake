# The tests of tokenizer/
mirabelle_test(semantic_id_test SOURCES tokenizer/semantic_id_test.cpp LIBS mirabelle_tokenizer)
mirabelle_test(tokenizer_config_test SOURCES tokenizer/tokenizer_config_test.cpp
               LIBS mirabelle_tokenizer)
mirabelle_test(rq_vae_config_test SOURCES tokenizer/rq_vae_config_test.cpp LIBS mirabelle_tokenizer)
mirabelle_test(rq_vae_test SOURCES tokenizer/rq_vae_test.cpp LIBS mirabelle_tokenizer)
mirabelle_test(rq_vae_trainer_test SOURCES tokenizer/rq_vae_trainer_test.cpp
               LIBS mirabelle_tokenizer)
mirabelle_test(rq_vae_ranks_test SOURCES tokenizer/rq_vae_ranks_test.cpp LIBS mirabelle_tokenizer
               RANKS 1 2 4)
mirabelle_test(item_rows_test SOURCES tokenizer/item_rows_test.cpp LIBS mirabelle_tokenizer)
mirabelle_test(code_assigner_test SOURCES tokenizer/code_assigner_test.cpp LIBS mirabelle_tokenizer)
mirabelle_test(residual_kmeans_test SOURCES tokenizer/residual_kmeans_test.cpp
               LIBS mirabelle_tokenizer)
mirabelle_test(tokenizer_report_test SOURCES tokenizer/tokenizer_report_test.cpp
               LIBS mirabelle_tokenizer)
mirabelle_test(tokenizer_file_test SOURCES tokenizer/tokenizer_file_test.cpp
               LIBS mirabelle_tokenizer)
mirabelle_test(tokenizer_builder_test SOURCES tokenizer/tokenizer_builder_test.cpp
               LIBS mirabelle_tokenizer)
mirabelle_test(rank_independence_test SOURCES tokenizer/rank_independence_test.cpp
               LIBS mirabelle_tokenizer RANKS 1 2 3 4)
mirabelle_test(co_occurrence_test SOURCES tokenizer/co_occurrence_test.cpp
               LIBS mirabelle_tokenizer RANKS 1 2 4)
mirabelle_test(co_occurrence_embedding_test SOURCES tokenizer/co_occurrence_embedding_test.cpp
               LIBS mirabelle_tokenizer)
mirabelle_test(code_embedding_test SOURCES tokenizer/code_embedding_test.cpp
               LIBS mirabelle_tokenizer RANKS 1 2)
mirabelle_test(collisions_test SOURCES tokenizer/collisions_test.cpp
               LIBS mirabelle_tokenizer RANKS 1 2 3)
mirabelle_test(code_order_test SOURCES tokenizer/code_order_test.cpp LIBS mirabelle_tokenizer)
mirabelle_test(code_quality_test SOURCES tokenizer/code_quality_test.cpp LIBS mirabelle_tokenizer)
mirabelle_test(tokenizer_ranks_test SOURCES tokenizer/tokenizer_ranks_test.cpp
               LIBS mirabelle_tokenizer RANKS 1 2 4)
