#include "mirabelle/kernels/key_value_cache.h"

#include <gtest/gtest.h>

#include "support/backends.h"
#include "support/errors.h"

namespace mirabelle {
namespace {

using namespace testing;

class KeyValueCacheTest : public BackendTest {};

TEST_P(KeyValueCacheTest, CopiesTheKeyAndTheValueOfEveryHead) {
  for (const int64_t num_tokens : {0, 1, 7, 301}) {
    for (const int64_t group_size : {1, 3}) {
      for (const int64_t width : {4, 5, 24}) {
        const int64_t heads = 2;
        const Shape shape = {num_tokens, heads, group_size + 2, width};
        const std::vector<double> values = random_values(shape.num_elements(), 3);
        const Buffer qkv = make_tensor(GetParam(), shape, values);
        const Buffer kv = empty_tensor(GetParam(), {num_tokens, heads, 2, width});
        copy_keys_and_values(kv.view(), qkv.view(), stream_);
        const std::vector<double> copied = to_doubles(kv.view());
        for (int64_t row = 0; row < num_tokens * heads; ++row) {
          for (int64_t i = 0; i < 2 * width; ++i) {
            ASSERT_EQ(copied[row * 2 * width + i],
                      values[(row * (group_size + 2) + group_size) * width + i])
                << "row " << row << ", element " << i;
          }
        }
      }
    }
  }
}

TEST_P(KeyValueCacheTest, RefusesOtherShapes) {
  const Buffer qkv = empty_tensor(GetParam(), {4, 2, 3, 5});
  const Buffer kv = empty_tensor(GetParam(), {4, 2, 2, 5});
  const Buffer short_kv = empty_tensor(GetParam(), {3, 2, 2, 5});
  const Buffer no_group = empty_tensor(GetParam(), {4, 2, 2, 5});
  expect_error("kv has shape", [&] { copy_keys_and_values(short_kv.view(), qkv.view(), stream_); });
  expect_error("qkv has shape", [&] { copy_keys_and_values(kv.view(), no_group.view(), stream_); });
}

MIRABELLE_INSTANTIATE_BACKENDS(KeyValueCacheTest);

}  // namespace
}  // namespace mirabelle
