#pragma once

#include <string>

#include "mirabelle/comm/communicator.h"
#include "mirabelle/model/transformer.h"

namespace mirabelle {

/// Compares, by hashes of their bits, the weights of which there are several copies: those of
/// data-parallel ranks, the norms of tensor-parallel ranks, and key/value heads that several shards
/// share. Empty if all are equal; else the first parameter that differs and the ranks that do not
/// have what most have. The same text on every rank. Collective over `world`, which is a grid as in
/// ParallelContext.
std::string find_different_replicas(const Transformer& model, const Communicator& world,
                                    const Stream& stream);

}  // namespace mirabelle
