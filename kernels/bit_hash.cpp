#include "mirabelle/kernels/bit_hash.h"

#include "check_operand.h"
#include "mirabelle/core/dispatch.h"

namespace mirabelle {

void bit_hashes(const TensorView& out, const TensorView& x, std::span<const int64_t> offsets,
                const Stream& stream) {
  const auto num_ranges = static_cast<int64_t>(offsets.size()) - 1;
  MIRABELLE_CHECK(num_ranges >= 0, "offsets are none, wanted at least one");
  check_operand("x", x, x.shape, x);
  TensorView like_out = x;
  like_out.dtype = DType::kInt64;
  check_operand("out", out, {num_ranges}, like_out);
  MIRABELLE_CHECK(offsets.front() >= 0 && offsets.back() <= x.num_elements(), "offsets run from ",
                  offsets.front(), " to ", offsets.back(), ", x has ", x.num_elements(),
                  " elements");
  for (int64_t i = 0; i < num_ranges; ++i) {
    MIRABELLE_CHECK(offsets[i] <= offsets[i + 1], "offsets[", i + 1, "] is ", offsets[i + 1],
                    ", wanted at least ", offsets[i]);
  }
  dispatch(x.device, x.dtype, [&]<Device D, typename T>() {
    for (int64_t i = 0; i < num_ranges; ++i) {
      backend::bit_hash<D>(out.as<int64_t>() + i, x.as<T>() + offsets[i],
                           offsets[i + 1] - offsets[i], stream);
    }
  });
}

}  // namespace mirabelle
