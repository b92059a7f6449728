#include "mirabelle/kernels/key_value_cache.h"

#include "check_operand.h"
#include "mirabelle/core/dispatch.h"

namespace mirabelle {

void copy_keys_and_values(const TensorView& kv, const TensorView& qkv, const Stream& stream) {
  MIRABELLE_CHECK(qkv.shape.rank() == 4 && qkv.shape[2] >= 3, "qkv has shape ", qkv.shape,
                  ", wanted [num_tokens, num_kv_heads, group_size + 2, head_dim]");
  check_operand("kv", kv, {qkv.shape[0], qkv.shape[1], 2, qkv.shape[3]}, qkv);
  dispatch(qkv.device, qkv.dtype, [&]<Device D, typename T>() {
    backend::copy_keys_and_values<D, T>(kv.as<T>(), qkv.as<T>(), qkv.shape[0], qkv.shape[1],
                                        qkv.shape[2] - 2, qkv.shape[3], stream);
  });
}

}  // namespace mirabelle
