#include "mirabelle/tokenizer/canonical_sum.h"

#include "mirabelle/core/error.h"

namespace mirabelle {

CanonicalSum::CanonicalSum(const Communicator& communicator)
    : communicator_(communicator),
      chunks_{kNumChunks * communicator.rank() / communicator.size(),
              kNumChunks * (communicator.rank() + 1) / communicator.size()},
      next_chunk_(chunks_.begin) {}

void CanonicalSum::add(std::vector<double> chunk_sum) {
  MIRABELLE_CHECK(next_chunk_ < chunks_.end, "the rank's chunks end at ", chunks_.end);
  push({next_chunk_++, 1, std::move(chunk_sum)});
}

void CanonicalSum::push(Node node) {
  // A right child completes its parent.
  while (!nodes_.empty() && nodes_.back().num_chunks == node.num_chunks &&
         nodes_.back().first_chunk % (2 * node.num_chunks) == 0) {
    Node& left = nodes_.back();
    for (size_t i = 0; i < left.sum.size(); ++i) left.sum[i] += node.sum[i];
    left.num_chunks *= 2;
    node = std::move(left);
    nodes_.pop_back();
  }
  nodes_.push_back(std::move(node));
}

void CanonicalSum::send_nodes() const {
  const Stream stream;
  int64_t count = static_cast<int64_t>(nodes_.size());
  communicator_.send(view_of(&count, {1}), 0, stream);
  for (const Node& node : nodes_) {
    int64_t header[3] = {node.first_chunk, node.num_chunks, static_cast<int64_t>(node.sum.size())};
    communicator_.send(view_of(header, {3}), 0, stream);
    communicator_.send(view_of(node.sum.data(), {header[2]}), 0, stream);
  }
}

void CanonicalSum::receive_nodes(int source) {
  const Stream stream;
  int64_t count = 0;
  communicator_.recv(view_of(&count, {1}), source, stream);
  for (int64_t i = 0; i < count; ++i) {
    int64_t header[3] = {};
    communicator_.recv(view_of(header, {3}), source, stream);
    Node node{header[0], header[1], std::vector<double>(header[2])};
    communicator_.recv(view_of(node.sum.data(), {header[2]}), source, stream);
    push(std::move(node));
  }
}

std::vector<double> CanonicalSum::finish() {
  MIRABELLE_CHECK(next_chunk_ == chunks_.end, "chunk ", next_chunk_, " was not added");
  int64_t length = 0;
  if (communicator_.rank() == 0) {
    for (int source = 1; source < communicator_.size(); ++source) receive_nodes(source);
    length = static_cast<int64_t>(nodes_.front().sum.size());
  } else {
    send_nodes();
  }
  const Stream stream;
  communicator_.broadcast(view_of(&length, {1}), 0, stream);
  std::vector<double> total(length);
  if (communicator_.rank() == 0) total = std::move(nodes_.front().sum);
  communicator_.broadcast(view_of(total.data(), {length}), 0, stream);
  return total;
}

}  // namespace mirabelle
