#include "bench/timing.h"

#include <omp.h>

#include <algorithm>
#include <chrono>
#include <cmath>

#include "mirabelle/core/buffer.h"
#include "mirabelle/core/copy.h"
#include "mirabelle/core/table.h"
#include "mirabelle/kernels/matmul.h"

namespace mirabelle {

double median(std::vector<double> values) {
  std::nth_element(values.begin(), values.begin() + values.size() / 2, values.end());
  return values[values.size() / 2];
}

double median_seconds(const std::function<void()>& work, const Stream& stream) {
  const auto seconds_of = [&](int64_t calls) {
    const auto start = std::chrono::steady_clock::now();
    for (int64_t i = 0; i < calls; ++i) work();
    stream.synchronize();
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  };
  seconds_of(2);  // warms up
  constexpr double kRound = 0.01;
  constexpr int kRounds = 15;
  const auto calls = static_cast<int64_t>(std::ceil(kRound / std::max(seconds_of(1), 1e-6)));
  std::vector<double> rounds;
  for (int round = 0; round < kRounds; ++round) {
    rounds.push_back(seconds_of(calls) / static_cast<double>(calls));
  }
  return median(rounds);
}

MachineLimits measure_limits(Device device, DType dtype) {
  const Stream stream(device);
  const int64_t bytes = device == Device::kCuda ? int64_t{1} << 30 : int64_t{1} << 28;
  const Buffer from(bytes, device), to(bytes, device);
  // On the CPU one thread cannot fill the memory's bandwidth: each copies a share.
  const int64_t shares = device == Device::kCuda ? 1 : omp_get_max_threads();
  const double copy_seconds = median_seconds(
      [&] {
#pragma omp parallel for schedule(static)
        for (int64_t i = 0; i < shares; ++i) {
          const int64_t begin = i * bytes / shares, end = (i + 1) * bytes / shares;
          copy(to.view().rows(begin, end), from.view().rows(begin, end), stream);
        }
      },
      stream);
  const int64_t n = device == Device::kCuda ? 8192 : 1024;
  const Buffer a({n, n}, dtype, device), b({n, n}, dtype, device), out({n, n}, dtype, device);
  const double product_seconds =
      median_seconds([&] { linear_forward(out.view(), a.view(), b.view(), stream); }, stream);
  return {2 * static_cast<double>(bytes) / copy_seconds,
          2 * std::pow(static_cast<double>(n), 3) / product_seconds};
}

MachineLimits better(const MachineLimits& a, const MachineLimits& b) {
  return {std::max(a.bytes_per_second, b.bytes_per_second),
          std::max(a.flops_per_second, b.flops_per_second)};
}

nlohmann::json to_json(const MachineLimits& limits) {
  return {{"copy_bytes_per_second", limits.bytes_per_second},
          {"product_flops_per_second", limits.flops_per_second}};
}

MachineLimits datasheet_limits(Device device, DType dtype) {
  if (device == Device::kCpu || dtype != DType::kBFloat16) return {};
  const std::string name = cuda_device_facts().name;
  const std::pair<const char*, MachineLimits> known[] = {{"H100 PCIe", {2.0e12, 756e12}},
                                                         {"H100", {3.35e12, 989e12}},
                                                         {"H200", {4.8e12, 989e12}},
                                                         {"A100", {2.0e12, 312e12}}};
  for (const auto& [part, limits] : known) {
    if (name.find(part) != std::string::npos) return limits;
  }
  return {};
}

std::string describe(const MachineLimits& measured, const MachineLimits& datasheet) {
  const auto rates = [](const MachineLimits& limits) {
    return "copies " + format_number(limits.bytes_per_second / 1e9, 1) +
           " GB/s (read and written), matrix products " +
           format_number(limits.flops_per_second / 1e9, 1) + " GFLOP/s";
  };
  return "measured limits: " + rates(measured) +
         (datasheet.flops_per_second > 0 ? "\ndatasheet: " + rates(datasheet) : "") +
         "\nuseful floating-point operations only: causal attention counts as half, no padding";
}

std::string format_share(double part, double whole) {
  return whole > 0 ? format_number(100 * part / whole, 1) + " %" : "-";
}

}  // namespace mirabelle
