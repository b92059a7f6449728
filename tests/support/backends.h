#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <ostream>
#include <vector>

#include "mirabelle/core/buffer.h"
#include "mirabelle/core/copy.h"
#include "mirabelle/core/random.h"
#include "mirabelle/core/stream.h"

namespace mirabelle::testing {

/// The (device, dtype) pairs that every kernel test runs on, with the tolerance of one operation
/// relative to the size of its operands.
struct Backend {
  Device device;
  DType dtype;
  double tolerance;
  bool reproducible = true;  // the stream
};

inline void PrintTo(const Backend& backend, std::ostream* out) {
  *out << to_string(backend.device) << "_" << to_string(backend.dtype)
       << (backend.reproducible ? "" : "_not_reproducible");
}

#ifdef MIRABELLE_CUDA
#define MIRABELLE_CUDA_BACKENDS(...) , __VA_ARGS__
#else
#define MIRABELLE_CUDA_BACKENDS(...)
#endif

inline const Backend kBackends[] = {
    {Device::kCpu, DType::kFloat32, 1e-5},
    {Device::kCpu, DType::kFloat64, 1e-12},
    {Device::kCpu, DType::kBFloat16, 1e-2} MIRABELLE_CUDA_BACKENDS(
        {Device::kCuda, DType::kFloat32, 1e-5}, {Device::kCuda, DType::kBFloat16, 1e-2})};

/// Of the kernels that have no bfloat16.
inline const Backend kWideBackends[] = {
    {Device::kCpu, DType::kFloat32, 1e-5},
    {Device::kCpu, DType::kFloat64,
     1e-12} MIRABELLE_CUDA_BACKENDS({Device::kCuda, DType::kFloat32, 1e-5})};

inline std::string backend_name(const ::testing::TestParamInfo<Backend>& info) {
  return ::testing::PrintToString(info.param);
}

/// Instantiates a TEST_P suite for all backends, or for those without bfloat16.
#define MIRABELLE_INSTANTIATE_BACKENDS(Suite)                                                     \
  INSTANTIATE_TEST_SUITE_P(Backends, Suite, ::testing::ValuesIn(::mirabelle::testing::kBackends), \
                           ::mirabelle::testing::backend_name)
#define MIRABELLE_INSTANTIATE_WIDE_BACKENDS(Suite)                                   \
  INSTANTIATE_TEST_SUITE_P(Backends, Suite,                                          \
                           ::testing::ValuesIn(::mirabelle::testing::kWideBackends), \
                           ::mirabelle::testing::backend_name)

/// The fixture of kernel tests. Cases on a GPU are skipped, visibly, where there is none.
class BackendTest : public ::testing::TestWithParam<Backend> {
 protected:
  void SetUp() override {
    if (!is_available()) GTEST_SKIP() << "no GPU";
  }
  static bool is_available() { return GetParam().device == Device::kCpu || num_cuda_devices() > 0; }
  const Stream stream_{is_available() ? GetParam().device : Device::kCpu, GetParam().reproducible};
};

/// A tensor on the backend, filled from doubles that are rounded to `dtype`.
inline Buffer make_tensor(Device device, DType dtype, const Shape& shape,
                          const std::vector<double>& values) {
  const Buffer on_host(shape, dtype);
  for (int64_t i = 0; i < shape.num_elements(); ++i) {
    if (dtype == DType::kFloat32) {
      static_cast<float*>(on_host.data())[i] = static_cast<float>(values[i]);
    } else if (dtype == DType::kBFloat16) {
      static_cast<BFloat16*>(on_host.data())[i] = BFloat16(static_cast<float>(values[i]));
    } else {
      static_cast<double*>(on_host.data())[i] = values[i];
    }
  }
  Buffer buffer(shape, dtype, device);
  copy(buffer.view(), on_host.view(), Stream(device));
  synchronize(device);
  return buffer;
}

/// Of the backend's floating dtype.
inline Buffer make_tensor(const Backend& backend, const Shape& shape,
                          const std::vector<double>& values) {
  return make_tensor(backend.device, backend.dtype, shape, values);
}

/// Of its wide dtype: statistics and parameter gradients.
inline Buffer make_wide_tensor(const Backend& backend, const Shape& shape,
                               const std::vector<double>& values) {
  return make_tensor(backend.device, wide(backend.dtype), shape, values);
}

/// Zeros.
inline Buffer empty_tensor(const Backend& backend, const Shape& shape) {
  return Buffer(shape, backend.dtype, backend.device);
}
inline Buffer empty_wide_tensor(const Backend& backend, const Shape& shape) {
  return Buffer(shape, wide(backend.dtype), backend.device);
}

inline Buffer make_int_tensor(const Backend& backend, const std::vector<int32_t>& values) {
  Buffer buffer({static_cast<int64_t>(values.size())}, DType::kInt32, backend.device);
  copy(buffer.view(), view_of(values), Stream(backend.device));
  synchronize(backend.device);
  return buffer;
}

/// A dropout key.
inline Buffer make_key(const Backend& backend, int64_t key) {
  Buffer buffer({1}, DType::kInt64, backend.device);
  copy(buffer.view(), view_of(&key, {1}), Stream(backend.device));
  synchronize(backend.device);
  return buffer;
}

/// The elements on the host, when all work on the tensor's device is done.
template <typename T>
std::vector<T> to_host(const TensorView& tensor) {
  synchronize(tensor.device);
  std::vector<T> values(tensor.num_elements());
  copy(view_of(values.data(), tensor.shape), tensor, Stream(tensor.device));
  synchronize(tensor.device);
  return values;
}

/// The tensor's elements as doubles.
inline std::vector<double> to_doubles(const TensorView& tensor) {
  const auto widened = [](const auto& values) {
    return std::vector<double>(values.begin(), values.end());
  };
  switch (tensor.dtype) {
    case DType::kFloat32:
      return widened(to_host<float>(tensor));
    case DType::kBFloat16:
      return widened(to_host<BFloat16>(tensor));
    default:
      return to_host<double>(tensor);
  }
}

/// n normally distributed doubles that bfloat16 holds exactly, so all dtypes see the same input.
inline std::vector<double> random_values(int64_t n, uint64_t seed, double scale = 1) {
  std::vector<double> values(n);
  for (int64_t i = 0; i < n; ++i) {
    const double value = scale * random_normal(random_key(seed, "test"), i);
    values[i] = BFloat16(static_cast<float>(value));
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
