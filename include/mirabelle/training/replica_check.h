#pragma once

#include <string>

#include "mirabelle/comm/communicator.h"
#include "mirabelle/model/transformer.h"

namespace mirabelle {

/// Compares, by hashes of their bits, the weights that several ranks hold: those of data-parallel
/// ranks, and of the norms and key/value heads that tensor-parallel ranks have copies of. Empty if
/// all are equal; else the first parameter that differs and the ranks that do not have what most
/// have. The same text on every rank. Collective over `world`, which is a grid as in
/// ParallelContext.
std::string find_different_replicas(const Transformer& model, const Communicator& world,
                                    const Stream& stream);

}  // namespace mirabelle
