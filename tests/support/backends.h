#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <ostream>
#include <vector>

#include "mirabelle/core/buffer.h"
#include "mirabelle/core/random.h"
#include "mirabelle/core/stream.h"

namespace mirabelle::testing {

/// The (device, dtype) pairs that every kernel test runs on, with the tolerance of one operation
/// relative to the size of its operands.
struct Backend {
  Device device;
  DType dtype;
  double tolerance;
};

inline void PrintTo(const Backend& backend, std::ostream* out) {
  *out << to_string(backend.device) << "_" << to_string(backend.dtype);
}

inline const Backend kBackends[] = {
    {Device::kCpu, DType::kFloat32, 1e-5},
    {Device::kCpu, DType::kFloat64, 1e-12},
};

inline std::string backend_name(const ::testing::TestParamInfo<Backend>& info) {
  return ::testing::PrintToString(info.param);
}

/// Instantiates a TEST_P suite for all backends.
#define MIRABELLE_INSTANTIATE_BACKENDS(Suite)                                                     \
  INSTANTIATE_TEST_SUITE_P(Backends, Suite, ::testing::ValuesIn(::mirabelle::testing::kBackends), \
                           ::mirabelle::testing::backend_name)

/// A tensor on the backend, of its floating dtype, filled from doubles.
inline Buffer make_tensor(const Backend& backend, const Shape& shape,
                          const std::vector<double>& values) {
  Buffer buffer(shape, backend.dtype, backend.device);
  for (int64_t i = 0; i < shape.num_elements(); ++i) {
    if (backend.dtype == DType::kFloat32) {
      static_cast<float*>(buffer.data())[i] = static_cast<float>(values[i]);
    } else {
      static_cast<double*>(buffer.data())[i] = values[i];
    }
  }
  return buffer;
}

inline Buffer make_int_tensor(const Backend& backend, const std::vector<int32_t>& values) {
  Buffer buffer({static_cast<int64_t>(values.size())}, DType::kInt32, backend.device);
  std::copy(values.begin(), values.end(), static_cast<int32_t*>(buffer.data()));
  return buffer;
}

/// The tensor's elements as doubles.
inline std::vector<double> to_doubles(const TensorView& tensor) {
  std::vector<double> values(tensor.num_elements());
  for (size_t i = 0; i < values.size(); ++i) {
    values[i] = tensor.dtype == DType::kFloat32 ? static_cast<float*>(tensor.data)[i]
                                                : static_cast<double*>(tensor.data)[i];
  }
  return values;
}

/// n normally distributed doubles that float32 holds exactly, so both dtypes see the same input.
inline std::vector<double> random_values(int64_t n, uint64_t seed, double scale = 1) {
  std::vector<double> values(n);
  for (int64_t i = 0; i < n; ++i) {
    values[i] = static_cast<float>(scale * random_normal(random_key(seed, "test"), i));
  }
  return values;
}

/// Every element within tolerance * (1 + |expected|); says the first that is not.
inline void expect_near(const std::vector<double>& actual, const std::vector<double>& expected,
                        double tolerance, const char* what) {
  ASSERT_EQ(actual.size(), expected.size()) << what;
  for (size_t i = 0; i < actual.size(); ++i) {
    // negated, so that NaN fails
    if (!(std::abs(actual[i] - expected[i]) <= tolerance * (1 + std::abs(expected[i])))) {
      ADD_FAILURE() << what << "[" << i << "] is " << actual[i] << ", expected " << expected[i];
      return;
    }
  }
}

/// d loss / d x by central differences; `loss` maps a vector of doubles to a double.
template <typename Loss>
std::vector<double> finite_differences(Loss loss, std::vector<double> x) {
  constexpr double kStep = 1e-5;
  std::vector<double> gradient(x.size());
  for (size_t i = 0; i < x.size(); ++i) {
    const double value = x[i];
    x[i] = value + kStep;
    const double above = loss(x);
    x[i] = value - kStep;
    const double below = loss(x);
    x[i] = value;
    gradient[i] = (above - below) / (2 * kStep);
  }
  return gradient;
}

/// sum of a * b: a loss whose gradient with respect to a is b.
inline double dot(const std::vector<double>& a, const std::vector<double>& b) {
  double total = 0;
  for (size_t i = 0; i < a.size(); ++i) total += a[i] * b[i];
  return total;
}

}  // namespace mirabelle::testing
