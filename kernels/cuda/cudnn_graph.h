#pragma once

#include <cudnn.h>

#include <array>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "mirabelle/core/unique_handle.h"

namespace mirabelle::backend {

// What we need of cuDNN's backend API: graphs of operations on tensors with four axes, which an
// engine makes into one or a few kernels. Everything throws an Error with cuDNN's own reason.

/// One descriptor: its attributes are set, then it is finalized.
class CudnnDescriptor {
 public:
  explicit CudnnDescriptor(cudnnBackendDescriptorType_t type);

  void set(cudnnBackendAttributeName_t attribute, cudnnBackendAttributeType_t type, int64_t count,
           const void* values);
  template <typename Value>
  void set(cudnnBackendAttributeName_t attribute, std::span<const Value> values) {
    set(attribute, type_of(Value()), static_cast<int64_t>(values.size()), values.data());
  }
  template <typename Value>
  void set(cudnnBackendAttributeName_t attribute, const Value& value) {
    set(attribute, std::span<const Value>(&value, 1));
  }
  void finalize();

  int64_t get_int64(cudnnBackendAttributeName_t attribute) const;
  cudnnBackendDescriptor_t get() const { return handle_.get(); }

 private:
  static constexpr auto type_of(int64_t) { return CUDNN_TYPE_INT64; }
  static constexpr auto type_of(bool) { return CUDNN_TYPE_BOOLEAN; }
  static constexpr auto type_of(double) { return CUDNN_TYPE_DOUBLE; }
  static constexpr auto type_of(char) { return CUDNN_TYPE_CHAR; }
  static constexpr auto type_of(cudnnDataType_t) { return CUDNN_TYPE_DATA_TYPE; }
  static constexpr auto type_of(cudnnPointwiseMode_t) { return CUDNN_TYPE_POINTWISE_MODE; }
  static constexpr auto type_of(cudnnReduceTensorOp_t) {
    return CUDNN_TYPE_REDUCTION_OPERATOR_TYPE;
  }
  static constexpr auto type_of(cudnnBackendHeurMode_t) { return CUDNN_TYPE_HEUR_MODE; }
  static constexpr auto type_of(cudnnHandle_t) { return CUDNN_TYPE_HANDLE; }
  static constexpr auto type_of(cudnnBackendDescriptor_t) { return CUDNN_TYPE_BACKEND_DESCRIPTOR; }

  static void destroy(cudnnBackendDescriptor_t descriptor);
  UniqueHandle<cudnnBackendDescriptor_t, &CudnnDescriptor::destroy> handle_;
};

/// The properties of a GPU that need not be there, from cuDNN's JSON.
CudnnDescriptor cudnn_device_properties(const std::string& json);

/// Strides are in elements.
struct CudnnLayout {
  std::array<int64_t, 4> dims, strides;
};

/// Belongs to its graph.
struct CudnnTensor {
  cudnnBackendDescriptor_t descriptor = nullptr;
  cudnnDataType_t type = CUDNN_DATA_FLOAT;
};

/// Operations, in the order in which they are added, and their tensors.
class CudnnGraph {
 public:
  /// In device memory; its address, a multiple of 16 bytes, is bound to `id` when the plan runs.
  /// Where a tensor is ragged, index i of its first axis begins ragged_offsets[i] elements behind
  /// the address, and the first stride means nothing.
  CudnnTensor memory(int64_t id, cudnnDataType_t type, const CudnnLayout& layout,
                     CudnnTensor ragged_offsets = {});
  /// One float32 in host memory, whose address is bound to `id`.
  CudnnTensor scalar(int64_t id);
  /// Only between operations.
  CudnnTensor intermediate(cudnnDataType_t type, const CudnnLayout& layout,
                           CudnnTensor ragged_offsets = {});

  /// How much of a matrix product there is for each index of the first axis, [n, 1, 1, 1] int32:
  /// out [m, n] = a [m, k] b [k, n]. The others of `sizes` are as the tensors say.
  struct MatmulSizes {
    CudnnTensor m = {}, n = {}, k = {};
    bool fill_with_zeros = false;  ///< what of `out` is not there; else undefined
  };
  /// out = a b in the last two axes, in float32. Where the second axis of b is shorter by a factor,
  /// so many neighbours in a share a matrix of b.
  void matmul(CudnnTensor out, CudnnTensor a, CudnnTensor b, const MatmulSizes& sizes);

  /// out = x op y for each element; y is repeated along axes of extent 1.
  void pointwise(cudnnPointwiseMode_t op, CudnnTensor out, CudnnTensor x, CudnnTensor y = {});
  /// out = condition ? x : y.
  void select(CudnnTensor out, CudnnTensor condition, CudnnTensor x, CudnnTensor y);
  /// out = its own index along `axis`; cuDNN wants a tensor of the same shape to start from.
  void index(CudnnTensor out, CudnnTensor like, int64_t axis);
  /// Down to the extents of out, each of them that of x, a divisor of it, or 1.
  void reduce(cudnnReduceTensorOp_t op, CudnnTensor out, CudnnTensor x);
  /// The same elements in another layout.
  void reshape(CudnnTensor out, CudnnTensor x);

  /// The engines that cuDNN offers for the graph on a GPU, best first; none if it has none.
  std::vector<CudnnDescriptor> engines(cudnnHandle_t handle) const;
  std::vector<CudnnDescriptor> engines(const CudnnDescriptor& device_properties) const;

 private:
  enum class Kind { kMemory, kScalar, kIntermediate };
  CudnnTensor tensor(int64_t id, Kind kind, cudnnDataType_t type, const CudnnLayout& layout,
                     CudnnTensor ragged_offsets);
  void pointwise(CudnnDescriptor op, CudnnTensor out, CudnnTensor x, CudnnTensor y,
                 CudnnTensor condition);
  void add_operation(CudnnDescriptor descriptor);
  cudnnBackendDescriptor_t keep(CudnnDescriptor descriptor);
  CudnnDescriptor finish(cudnnHandle_t handle) const;

  std::vector<CudnnDescriptor> descriptors_;
  std::vector<cudnnBackendDescriptor_t> operations_;
};

/// A graph as an engine runs it.
class CudnnPlan {
 public:
  /// Takes the first of the graph's engines that can build a plan. Throws if none can.
  CudnnPlan(CudnnGraph graph, cudnnHandle_t handle);

  int64_t workspace_bytes() const { return workspace_bytes_; }

  struct Binding {
    int64_t id;
    const void* address;
  };
  /// Enqueues on the handle's stream. Everything in memory and every scalar must be bound.
  void run(cudnnHandle_t handle, std::span<const Binding> bindings, void* workspace) const;

 private:
  CudnnGraph graph_;  // a plan may refer to it
  std::optional<CudnnDescriptor> engine_, plan_;
  int64_t workspace_bytes_ = 0;
};

}  // namespace mirabelle::backend
