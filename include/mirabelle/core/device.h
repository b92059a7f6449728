#pragma once

#include <cstdint>
#include <string>

namespace mirabelle {

/// Where memory lives and which backend of a kernel runs.
enum class Device { kCpu, kCuda };

inline const char* to_string(Device device) { return device == Device::kCpu ? "cpu" : "cuda"; }

/// GPUs that this process can use; 0 in a build without CUDA and on a machine without a GPU or
/// driver.
int num_cuda_devices();

/// Chooses the GPU of this process, `local_rank` modulo their number. Call it before anything else
/// that touches the GPU.
void select_cuda_device(int local_rank);

/// Waits for all work on the device.
void synchronize(Device device);

/// The chosen GPU.
struct CudaDeviceFacts {
  std::string name;
  int64_t total_bytes = 0, free_bytes = 0;
  int64_t index = 0;        ///< among those that this process can use
  std::string uuid;         ///< in hexadecimal; no other GPU has it
  std::string pci_address;  ///< as /sys/bus/pci/devices names it
};
CudaDeviceFacts cuda_device_facts();

/// The newest CUDA that the driver knows: "13.0"; "" in a build without CUDA or without a driver.
std::string cuda_driver_version();

}  // namespace mirabelle
