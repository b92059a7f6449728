#include "mirabelle/training/micro_step.h"

namespace mirabelle {

void MicroStep::run(const PackedBatch& batch, const PassHooks& hooks, const Stream& stream) {
  const auto pass = [&] { model_.forward_backward(batch, hooks, stream); };
  const bool is_alone = model_.tensor_parallel().size() == 1 && !hooks;
  if (!use_graph_ || stream.device() == Device::kCpu || !is_alone) return pass();
  const Key key = {batch.tokens.data, batch.tokens.num_elements(),
                   batch.sequence_offsets.num_elements()};
  const auto [entry, is_new] = graphs_.try_emplace(key);
  if (is_new) return pass();  // chooses algorithms, grows workspaces
  if (!entry->second) entry->second.emplace(stream, pass);
  entry->second->launch(stream);
}

}  // namespace mirabelle
