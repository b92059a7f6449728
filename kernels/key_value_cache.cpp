#include "mirabelle/kernels/key_value_cache.h"

#include "check_operand.h"
#include "mirabelle/core/dispatch.h"

namespace mirabelle {

void copy_keys_and_values(const TensorView& kv, const TensorView& qkv, const Stream& stream) {
  MIRABELLE_CHECK(qkv.shape.rank() == 3, "qkv has shape ", qkv.shape,
                  ", wanted [num_tokens, num_heads + 2 * num_kv_heads, head_dim]");
  MIRABELLE_CHECK(kv.shape.rank() == 4 && 2 * kv.shape[2] < qkv.shape[1], "kv has shape ", kv.shape,
                  " and qkv ", qkv.shape, ", wanted [num_tokens, 2, num_kv_heads, head_dim] and ",
                  "[num_tokens, num_heads + 2 * num_kv_heads, head_dim]");
  const int64_t num_tokens = qkv.shape[0], head_dim = qkv.shape[2];
  check_operand("qkv", qkv, qkv.shape, qkv);
  check_operand("kv", kv, {num_tokens, 2, kv.shape[2], head_dim}, qkv);
  dispatch(qkv.device, qkv.dtype, [&]<Device D, typename T>() {
    backend::copy_keys_and_values<D, T>(kv.as<T>(), qkv.as<T>(), num_tokens,
                                        2 * kv.shape[2] * head_dim, qkv.shape[1] * head_dim,
                                        stream);
  });
}

}  // namespace mirabelle
