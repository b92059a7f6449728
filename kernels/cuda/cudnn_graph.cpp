#include "cuda/cudnn_graph.h"

#include "cuda/cudnn_check.h"

namespace mirabelle::backend {
namespace {

constexpr int64_t kFirstIntermediateId = 1 << 20;  // behind those of the callers
constexpr int64_t kAlignmentBytes = 16;

/// Indices and masks are computed as such, all else in float32.
CudnnDescriptor pointwise_descriptor(cudnnPointwiseMode_t op, CudnnTensor out) {
  const bool is_half = out.type == CUDNN_DATA_BFLOAT16;
  CudnnDescriptor pointwise(CUDNN_BACKEND_POINTWISE_DESCRIPTOR);
  pointwise.set(CUDNN_ATTR_POINTWISE_MODE, op);
  pointwise.set(CUDNN_ATTR_POINTWISE_MATH_PREC, is_half ? CUDNN_DATA_FLOAT : out.type);
  return pointwise;
}

std::vector<CudnnDescriptor> ask_for_engines(const CudnnDescriptor& graph,
                                             const CudnnDescriptor* device_properties) {
  CudnnDescriptor heuristics(CUDNN_BACKEND_ENGINEHEUR_DESCRIPTOR);
  heuristics.set(CUDNN_ATTR_ENGINEHEUR_OPERATION_GRAPH, graph.get());
  heuristics.set(CUDNN_ATTR_ENGINEHEUR_MODE, CUDNN_HEUR_MODE_A);
  if (device_properties) {
    heuristics.set(CUDNN_ATTR_ENGINEHEUR_DEVICEPROP, device_properties->get());
  }
  heuristics.finalize();
  int64_t count = 0;
  CUDNN_CHECK(cudnnBackendGetAttribute(heuristics.get(), CUDNN_ATTR_ENGINEHEUR_RESULTS,
                                       CUDNN_TYPE_BACKEND_DESCRIPTOR, 0, &count, nullptr));
  std::vector<CudnnDescriptor> engines;
  std::vector<cudnnBackendDescriptor_t> to_fill;
  for (int64_t i = 0; i < count; ++i) {
    engines.emplace_back(CUDNN_BACKEND_ENGINECFG_DESCRIPTOR);
    to_fill.push_back(engines.back().get());
  }
  CUDNN_CHECK(cudnnBackendGetAttribute(heuristics.get(), CUDNN_ATTR_ENGINEHEUR_RESULTS,
                                       CUDNN_TYPE_BACKEND_DESCRIPTOR, count, &count,
                                       to_fill.data()));
  engines.erase(engines.begin() + count, engines.end());  // it may count more than it gives
  return engines;
}

}  // namespace

CudnnDescriptor::CudnnDescriptor(cudnnBackendDescriptorType_t type) {
  cudnnBackendDescriptor_t created = nullptr;
  CUDNN_CHECK(cudnnBackendCreateDescriptor(type, &created));
  handle_ = decltype(handle_)(created);
}

void CudnnDescriptor::destroy(cudnnBackendDescriptor_t descriptor) {
  cudnnBackendDestroyDescriptor(descriptor);
}

void CudnnDescriptor::set(cudnnBackendAttributeName_t attribute, cudnnBackendAttributeType_t type,
                          int64_t count, const void* values) {
  CUDNN_CHECK(cudnnBackendSetAttribute(get(), attribute, type, count, values));
}

void CudnnDescriptor::finalize() { CUDNN_CHECK(cudnnBackendFinalize(get())); }

int64_t CudnnDescriptor::get_int64(cudnnBackendAttributeName_t attribute) const {
  int64_t value = 0, count = 0;
  CUDNN_CHECK(cudnnBackendGetAttribute(get(), attribute, CUDNN_TYPE_INT64, 1, &count, &value));
  return value;
}

CudnnDescriptor cudnn_device_properties(const std::string& json) {
  CudnnDescriptor properties(CUDNN_BACKEND_DEVICEPROP_DESCRIPTOR);
  properties.set(CUDNN_ATTR_DEVICEPROP_JSON_REPRESENTATION, std::span<const char>(json));
  properties.finalize();
  return properties;
}

cudnnBackendDescriptor_t CudnnGraph::keep(CudnnDescriptor descriptor) {
  descriptor.finalize();
  descriptors_.push_back(std::move(descriptor));
  return descriptors_.back().get();
}

void CudnnGraph::add_operation(CudnnDescriptor descriptor) {
  operations_.push_back(keep(std::move(descriptor)));
}

CudnnTensor CudnnGraph::tensor(int64_t id, Kind kind, cudnnDataType_t type,
                               const CudnnLayout& layout, CudnnTensor ragged_offsets) {
  CudnnDescriptor tensor(CUDNN_BACKEND_TENSOR_DESCRIPTOR);
  tensor.set(CUDNN_ATTR_TENSOR_UNIQUE_ID, id);
  tensor.set(CUDNN_ATTR_TENSOR_DATA_TYPE, type);
  tensor.set(CUDNN_ATTR_TENSOR_DIMENSIONS, std::span<const int64_t>(layout.dims));
  tensor.set(CUDNN_ATTR_TENSOR_STRIDES, std::span<const int64_t>(layout.strides));
  tensor.set(CUDNN_ATTR_TENSOR_BYTE_ALIGNMENT, kAlignmentBytes);
  tensor.set(CUDNN_ATTR_TENSOR_IS_VIRTUAL, kind == Kind::kIntermediate);
  tensor.set(CUDNN_ATTR_TENSOR_IS_BY_VALUE, kind == Kind::kScalar);
  if (ragged_offsets.descriptor) {
    tensor.set(CUDNN_ATTR_TENSOR_RAGGED_OFFSET_DESC, ragged_offsets.descriptor);
  }
  return {keep(std::move(tensor)), type};
}

CudnnTensor CudnnGraph::memory(int64_t id, cudnnDataType_t type, const CudnnLayout& layout,
                               CudnnTensor ragged_offsets) {
  return tensor(id, Kind::kMemory, type, layout, ragged_offsets);
}

CudnnTensor CudnnGraph::scalar(int64_t id) {
  return tensor(id, Kind::kScalar, CUDNN_DATA_FLOAT, {{1, 1, 1, 1}, {1, 1, 1, 1}}, {});
}

CudnnTensor CudnnGraph::intermediate(cudnnDataType_t type, const CudnnLayout& layout,
                                     CudnnTensor ragged_offsets) {
  const auto id = kFirstIntermediateId + static_cast<int64_t>(descriptors_.size());
  return tensor(id, Kind::kIntermediate, type, layout, ragged_offsets);
}

void CudnnGraph::matmul(CudnnTensor out, CudnnTensor a, CudnnTensor b, const MatmulSizes& sizes) {
  CudnnDescriptor matmul(CUDNN_BACKEND_MATMUL_DESCRIPTOR);
  matmul.set(CUDNN_ATTR_MATMUL_COMP_TYPE, CUDNN_DATA_FLOAT);
  if (sizes.fill_with_zeros) matmul.set(CUDNN_ATTR_MATMUL_PADDING_VALUE, 0.0);
  CudnnDescriptor product(CUDNN_BACKEND_OPERATION_MATMUL_DESCRIPTOR);
  product.set(CUDNN_ATTR_OPERATION_MATMUL_DESC, keep(std::move(matmul)));
  product.set(CUDNN_ATTR_OPERATION_MATMUL_ADESC, a.descriptor);
  product.set(CUDNN_ATTR_OPERATION_MATMUL_BDESC, b.descriptor);
  product.set(CUDNN_ATTR_OPERATION_MATMUL_CDESC, out.descriptor);
  const auto set_size = [&](cudnnBackendAttributeName_t attribute, CudnnTensor size) {
    if (size.descriptor) product.set(attribute, size.descriptor);
  };
  set_size(CUDNN_ATTR_OPERATION_MATMUL_GEMM_M_OVERRIDE_DESC, sizes.m);
  set_size(CUDNN_ATTR_OPERATION_MATMUL_GEMM_N_OVERRIDE_DESC, sizes.n);
  set_size(CUDNN_ATTR_OPERATION_MATMUL_GEMM_K_OVERRIDE_DESC, sizes.k);
  add_operation(std::move(product));
}

void CudnnGraph::pointwise(CudnnDescriptor op, CudnnTensor out, CudnnTensor x, CudnnTensor y,
                           CudnnTensor condition) {
  CudnnDescriptor applied(CUDNN_BACKEND_OPERATION_POINTWISE_DESCRIPTOR);
  applied.set(CUDNN_ATTR_OPERATION_POINTWISE_PW_DESCRIPTOR, keep(std::move(op)));
  applied.set(CUDNN_ATTR_OPERATION_POINTWISE_XDESC, x.descriptor);
  if (y.descriptor) applied.set(CUDNN_ATTR_OPERATION_POINTWISE_BDESC, y.descriptor);
  if (condition.descriptor) applied.set(CUDNN_ATTR_OPERATION_POINTWISE_TDESC, condition.descriptor);
  applied.set(CUDNN_ATTR_OPERATION_POINTWISE_YDESC, out.descriptor);
  add_operation(std::move(applied));
}

void CudnnGraph::pointwise(cudnnPointwiseMode_t op, CudnnTensor out, CudnnTensor x, CudnnTensor y) {
  pointwise(pointwise_descriptor(op, out), out, x, y, {});
}

void CudnnGraph::select(CudnnTensor out, CudnnTensor condition, CudnnTensor x, CudnnTensor y) {
  pointwise(pointwise_descriptor(CUDNN_POINTWISE_BINARY_SELECT, out), out, x, y, condition);
}

void CudnnGraph::index(CudnnTensor out, CudnnTensor like, int64_t axis) {
  CudnnDescriptor op = pointwise_descriptor(CUDNN_POINTWISE_GEN_INDEX, out);
  op.set(CUDNN_ATTR_POINTWISE_AXIS, axis);
  pointwise(std::move(op), out, like, {}, {});
}

void CudnnGraph::reduce(cudnnReduceTensorOp_t op, CudnnTensor out, CudnnTensor x) {
  CudnnDescriptor reduction(CUDNN_BACKEND_REDUCTION_DESCRIPTOR);
  reduction.set(CUDNN_ATTR_REDUCTION_OPERATOR, op);
  reduction.set(CUDNN_ATTR_REDUCTION_COMP_TYPE, CUDNN_DATA_FLOAT);
  CudnnDescriptor applied(CUDNN_BACKEND_OPERATION_REDUCTION_DESCRIPTOR);
  applied.set(CUDNN_ATTR_OPERATION_REDUCTION_DESC, keep(std::move(reduction)));
  applied.set(CUDNN_ATTR_OPERATION_REDUCTION_XDESC, x.descriptor);
  applied.set(CUDNN_ATTR_OPERATION_REDUCTION_YDESC, out.descriptor);
  add_operation(std::move(applied));
}

void CudnnGraph::reshape(CudnnTensor out, CudnnTensor x) {
  CudnnDescriptor applied(CUDNN_BACKEND_OPERATION_RESHAPE_DESCRIPTOR);
  applied.set(CUDNN_ATTR_OPERATION_RESHAPE_XDESC, x.descriptor);
  applied.set(CUDNN_ATTR_OPERATION_RESHAPE_YDESC, out.descriptor);
  add_operation(std::move(applied));
}

CudnnDescriptor CudnnGraph::finish(cudnnHandle_t handle) const {
  CudnnDescriptor graph(CUDNN_BACKEND_OPERATIONGRAPH_DESCRIPTOR);
  graph.set(CUDNN_ATTR_OPERATIONGRAPH_OPS, std::span<const cudnnBackendDescriptor_t>(operations_));
  if (handle) graph.set(CUDNN_ATTR_OPERATIONGRAPH_HANDLE, handle);
  graph.finalize();
  return graph;
}

std::vector<CudnnDescriptor> CudnnGraph::engines(cudnnHandle_t handle) const {
  return ask_for_engines(finish(handle), nullptr);
}

std::vector<CudnnDescriptor> CudnnGraph::engines(const CudnnDescriptor& device_properties) const {
  return ask_for_engines(finish(nullptr), &device_properties);
}

CudnnPlan::CudnnPlan(CudnnGraph graph, cudnnHandle_t handle) : graph_(std::move(graph)) {
  std::string reason = "it offers no engine";
  for (CudnnDescriptor& engine : graph_.engines(handle)) {
    CudnnDescriptor plan(CUDNN_BACKEND_EXECUTION_PLAN_DESCRIPTOR);
    plan.set(CUDNN_ATTR_EXECUTION_PLAN_HANDLE, handle);
    plan.set(CUDNN_ATTR_EXECUTION_PLAN_ENGINE_CONFIG, engine.get());
    try {
      plan.finalize();
    } catch (const Error& error) {
      reason = error.what();
      continue;
    }
    workspace_bytes_ = plan.get_int64(CUDNN_ATTR_EXECUTION_PLAN_WORKSPACE_SIZE);
    engine_.emplace(std::move(engine));
    plan_.emplace(std::move(plan));
    return;
  }
  throw_error(ErrorKind::kOther, "cuDNN does not take the graph: ", reason);
}

void CudnnPlan::run(cudnnHandle_t handle, std::span<const Binding> bindings,
                    void* workspace) const {
  std::vector<int64_t> ids;
  std::vector<void*> addresses;
  for (const Binding& binding : bindings) {
    ids.push_back(binding.id);
    addresses.push_back(const_cast<void*>(binding.address));
  }
  CudnnDescriptor pack(CUDNN_BACKEND_VARIANT_PACK_DESCRIPTOR);
  pack.set(CUDNN_ATTR_VARIANT_PACK_UNIQUE_IDS, std::span<const int64_t>(ids));
  pack.set(CUDNN_ATTR_VARIANT_PACK_DATA_POINTERS, CUDNN_TYPE_VOID_PTR,
           static_cast<int64_t>(addresses.size()), addresses.data());
  pack.set(CUDNN_ATTR_VARIANT_PACK_WORKSPACE, CUDNN_TYPE_VOID_PTR, 1, &workspace);
  pack.finalize();
  CUDNN_CHECK(cudnnBackendExecute(handle, plan_->get(), pack.get()));
}

}  // namespace mirabelle::backend
