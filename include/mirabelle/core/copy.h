#pragma once

#include "mirabelle/core/buffer.h"
#include "mirabelle/core/stream.h"

namespace mirabelle {

/// to = from, of one shape and dtype, on any devices, in stream order on `stream`. Between host and
/// GPU the host's memory must stay as it is until the stream has come so far, unless it is
/// pageable. Throws Error if shapes or dtypes disagree.
void copy(const TensorView& to, const TensorView& from, const Stream& stream);

/// x itself if the host can read it, else a copy in `memory`, which grows as needed. Waits for the
/// stream.
TensorView on_host(const TensorView& x, Buffer& memory, const Stream& stream);

}  // namespace mirabelle
