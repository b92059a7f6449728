#include "mirabelle/training/micro_step.h"

namespace mirabelle {

void MicroStep::run(const PackedBatch& batch, const Transformer::GradientsFinal& gradients_final,
                    const Stream& stream) {
  const auto pass = [&] { model_.forward_backward(batch, gradients_final, stream); };
  if (!use_graph_ || stream.device() == Device::kCpu || gradients_final) return pass();
  const Key key = {batch.tokens.data, batch.tokens.num_elements(),
                   batch.sequence_offsets.num_elements()};
  const auto [entry, is_new] = graphs_.try_emplace(key);
  if (is_new) return pass();  // chooses algorithms, grows workspaces
  if (!entry->second) entry->second.emplace(stream, pass);
  entry->second->launch(stream);
}

}  // namespace mirabelle
