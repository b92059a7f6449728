#include "mirabelle/core/device.h"

#include <cstdio>

#include "mirabelle/core/error.h"

#ifdef MIRABELLE_CUDA
#include "mirabelle/core/cuda_check.h"
#endif

namespace mirabelle {

#ifdef MIRABELLE_CUDA

int num_cuda_devices() {
  int count = 0;  // stays untouched where there is no driver
  return cudaGetDeviceCount(&count) == cudaSuccess ? count : 0;
}

void select_cuda_device(int local_rank) {
  const int count = num_cuda_devices();
  MIRABELLE_CHECK(count > 0, "this machine has no GPU that CUDA can use");
  CUDA_CHECK(cudaSetDevice(local_rank % count));
}

void synchronize(Device device) {
  if (device == Device::kCuda) CUDA_CHECK(cudaDeviceSynchronize());
}

CudaDeviceFacts cuda_device_facts() {
  int device = 0;
  cudaDeviceProp properties;
  CUDA_CHECK(cudaGetDevice(&device));
  CUDA_CHECK(cudaGetDeviceProperties(&properties, device));
  size_t free_bytes = 0, total_bytes = 0;
  CUDA_CHECK(cudaMemGetInfo(&free_bytes, &total_bytes));
  std::string uuid;
  char text[16];
  for (const char byte : properties.uuid.bytes) {
    std::snprintf(text, sizeof text, "%02x", static_cast<unsigned char>(byte));
    uuid += text;
  }
  std::snprintf(text, sizeof text, "%04x:%02x:%02x.0", properties.pciDomainID, properties.pciBusID,
                properties.pciDeviceID);
  return {properties.name,
          static_cast<int64_t>(total_bytes),
          static_cast<int64_t>(free_bytes),
          device,
          uuid,
          text};
}

std::string cuda_driver_version() {
  int version = 0;  // 0 where there is no driver
  if (cudaDriverGetVersion(&version) != cudaSuccess || version == 0) return "";
  return std::to_string(version / 1000) + "." + std::to_string(version % 1000 / 10);
}

#else

int num_cuda_devices() { return 0; }
void select_cuda_device(int) { throw_error(ErrorKind::kOther, "this build has no cuda backend"); }
void synchronize(Device) {}
CudaDeviceFacts cuda_device_facts() {
  throw_error(ErrorKind::kOther, "this build has no cuda backend");
}
std::string cuda_driver_version() { return ""; }

#endif

}  // namespace mirabelle
