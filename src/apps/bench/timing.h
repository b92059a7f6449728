#pragma once

#include <functional>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "mirabelle/core/dtype.h"
#include "mirabelle/core/stream.h"

namespace mirabelle {

double median(std::vector<double> values);

/// Of one call of `work`, which enqueues on `stream`: the median over rounds, each long enough for
/// the clock.
double median_seconds(const std::function<void()>& work, const Stream& stream);

/// What this machine can do at most, measured.
struct MachineLimits {
  double bytes_per_second = 0;  ///< of copies: bytes read and bytes written
  double flops_per_second = 0;  ///< of large matrix products in a dtype
};
MachineLimits measure_limits(Device device, DType dtype);
/// The better of two measurements: machines are shared and noisy.
MachineLimits better(const MachineLimits& a, const MachineLimits& b);
nlohmann::json to_json(const MachineLimits& limits);

/// What the datasheet of this GPU says (dense bfloat16); zeros where we know of none.
MachineLimits datasheet_limits(Device device, DType dtype);

/// One line for people: what was measured, and what the datasheet says.
std::string describe(const MachineLimits& measured, const MachineLimits& datasheet);

/// "61.3 %", or "-" where there is no whole.
std::string format_share(double part, double whole);

}  // namespace mirabelle
