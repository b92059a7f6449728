#include "mirabelle/kernels/key_value_cache.h"

#include <gtest/gtest.h>

#include "support/backends.h"
#include "support/errors.h"

namespace mirabelle {
namespace {

using namespace testing;

class KeyValueCacheTest : public BackendTest {};

TEST_P(KeyValueCacheTest, CopiesTheKeysAndTheValuesOfEveryToken) {
  const int64_t kv_heads = 2;
  for (const int64_t num_tokens : {0, 1, 7, 301}) {
    for (const int64_t num_heads : {2, 6}) {
      for (const int64_t width : {4, 5, 24}) {
        const Shape shape = {num_tokens, num_heads + 2 * kv_heads, width};
        const std::vector<double> values = random_values(shape.num_elements(), 3);
        const Buffer qkv = make_tensor(GetParam(), shape, values);
        const Buffer kv = empty_tensor(GetParam(), {num_tokens, 2, kv_heads, width});
        copy_keys_and_values(kv.view(), qkv.view(), stream_);
        const std::vector<double> copied = to_doubles(kv.view());
        ASSERT_EQ(copied.size(), static_cast<size_t>(num_tokens * 2 * kv_heads * width));
        for (int64_t token = 0; token < num_tokens; ++token) {
          for (int64_t head = 0; head < 2 * kv_heads; ++head) {
            for (int64_t i = 0; i < width; ++i) {
              ASSERT_EQ(copied[(token * 2 * kv_heads + head) * width + i],
                        values[(token * shape[1] + num_heads + head) * width + i])
                  << "token " << token << ", head " << head << ", element " << i;
            }
          }
        }
      }
    }
  }
}

TEST_P(KeyValueCacheTest, RefusesOtherShapes) {
  const Buffer qkv = empty_tensor(GetParam(), {4, 6, 5});
  const Buffer kv = empty_tensor(GetParam(), {4, 2, 2, 5});
  const Buffer short_kv = empty_tensor(GetParam(), {3, 2, 2, 5});
  const Buffer no_queries = empty_tensor(GetParam(), {4, 4, 5});
  const auto refuses = [&](const std::string& message, const Buffer& to, const TensorView& from) {
    expect_error(message, [&] { copy_keys_and_values(to.view(), from, stream_); });
  };
  refuses("kv has shape [3, 2, 2, 5], wanted [4, 2, 2, 5]", short_kv, qkv.view());
  refuses("kv has shape [4, 2, 2, 5] and qkv [4, 4, 5]", kv, no_queries.view());
  refuses("qkv has shape [4, 30], wanted", kv, qkv.view().reshaped({4, 30}));
}

MIRABELLE_INSTANTIATE_BACKENDS(KeyValueCacheTest);

}  // namespace
}  // namespace mirabelle
