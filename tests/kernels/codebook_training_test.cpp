#include "mirabelle/kernels/codebook_training.h"

#include "support/backends.h"
#include "support/errors.h"
#include "support/threads.h"

namespace mirabelle::testing {
namespace {

using Values = std::vector<double>;

double norm(const Values& x) { return std::sqrt(dot(x, x)); }

/// The matrix, row by row, that rotates z / |z| to q / |q| and leaves what is orthogonal to both,
/// times |q| / |z|: by an orthonormal basis (u, v) of their plane, in which it is a turn by their
/// angle.
Values rotation_and_scale(const Values& z, const Values& q) {
  const size_t dim = z.size();
  Values u = z, v = q;
  for (double& value : u) value /= norm(z);
  const double along = dot(u, q);
  for (size_t i = 0; i < dim; ++i) v[i] -= along * u[i];
  const double across = norm(v);
  for (double& value : v) value /= across;
  const double cosine = along / norm(q), sine = across / norm(q);
  Values matrix(dim * dim);
  for (size_t i = 0; i < dim; ++i) {
    for (size_t j = 0; j < dim; ++j) {
      const double turned = (cosine - 1) * (u[i] * u[j] + v[i] * v[j]) +
                            sine * (v[i] * u[j] - u[i] * v[j]) + (i == j);
      matrix[i * dim + j] = norm(q) / norm(z) * turned;
    }
  }
  return matrix;
}

class CodebookTrainingTest : public BackendTest {
 protected:
  Values rotate(const Values& grad, const Values& z, const Values& q, int64_t n, int64_t dim,
                bool in_place = false) {
    const Buffer grad_q = make_tensor(GetParam(), {n, dim}, grad);
    const Buffer separate = make_tensor(GetParam(), {n, dim}, Values(n * dim, 9.0));
    const TensorView& grad_z = in_place ? grad_q.view() : separate.view();
    rotation_backward(grad_z, grad_q.view(), make_tensor(GetParam(), {n, dim}, z).view(),
                      make_tensor(GetParam(), {n, dim}, q).view(), stream_);
    return to_doubles(grad_z);
  }
  Values sum_kept(const Values& residuals, const std::vector<int32_t>& num_kept, int64_t levels,
                  int64_t dim) {
    const int64_t n = static_cast<int64_t>(num_kept.size());
    const Buffer out = empty_tensor(GetParam(), {n, dim});
    sum_kept_codes(out.view(), make_tensor(GetParam(), {levels + 1, n, dim}, residuals).view(),
                   make_int_tensor(GetParam(), num_kept).view(), stream_);
    return to_doubles(out.view());
  }
  Buffer make_counts(const std::vector<int64_t>& values) {
    Buffer buffer({static_cast<int64_t>(values.size())}, DType::kInt64, GetParam().device);
    copy(buffer.view(), view_of(values), stream_);
    synchronize(GetParam().device);
    return buffer;
  }
};
MIRABELLE_INSTANTIATE_WIDE_BACKENDS(CodebookTrainingTest);

TEST_P(CodebookTrainingTest, SumsTheFirstCodesOfEachItem) {
  // two items, two levels: z, then without code 1, then without code 2
  const Values residuals = {10, 20, /**/ 7, 8, /**/ 9, 18, /**/ 7, 5, /**/ 8.5, 17, /**/ 6, 5};
  EXPECT_EQ(sum_kept(residuals, {0, 0}, 2, 2), (Values{0, 0, 0, 0}));
  EXPECT_EQ(sum_kept(residuals, {1, 2}, 2, 2), (Values{1, 2, 1, 3}));
  EXPECT_EQ(sum_kept(residuals, {2, 1}, 2, 2), (Values{1.5, 3, 0, 3}));
}

TEST_P(CodebookTrainingTest, SumsOfAnySizeFollowTheFormula) {
  for (const auto& [n, dim, levels] :
       {std::array<int64_t, 3>{0, 4, 2}, {1, 1, 1}, {7, 0, 1}, {33, 7, 4}, {300, 96, 3}}) {
    const Values residuals = random_values((levels + 1) * n * dim, 1);
    std::vector<int32_t> kept(n);
    for (int64_t i = 0; i < n; ++i) kept[i] = static_cast<int32_t>(i % (levels + 1));
    Values expected;
    for (int64_t i = 0; i < n * dim; ++i) {
      expected.push_back(residuals[i] - residuals[kept[i / dim] * n * dim + i]);
    }
    expect_near(sum_kept(residuals, kept, levels, dim), expected, GetParam().tolerance, "sum");
  }
}

TEST_P(CodebookTrainingTest, TheGradientIsTurnedBackByTheRotationMatrix) {
  for (const auto& [n, dim] : {std::array<int64_t, 2>{1, 2}, {5, 3}, {9, 33}, {20, 64}}) {
    const Values grad = random_values(n * dim, 1), z = random_values(n * dim, 2),
                 q = random_values(n * dim, 3, 0.5);
    Values expected(n * dim);
    for (int64_t row = 0; row < n; ++row) {
      const auto part = [&](const Values& x) {
        return Values(x.begin() + row * dim, x.begin() + (row + 1) * dim);
      };
      const Values matrix = rotation_and_scale(part(z), part(q));
      Values turned(dim);  // the matrix indeed takes z to q
      for (int64_t i = 0; i < dim; ++i) {
        for (int64_t j = 0; j < dim; ++j) {
          turned[i] += matrix[i * dim + j] * z[row * dim + j];
          expected[row * dim + j] += matrix[i * dim + j] * grad[row * dim + i];
        }
      }
      expect_near(turned, part(q), 1e-12, "R z");
    }
    expect_near(rotate(grad, z, q, n, dim), expected, 30 * GetParam().tolerance, "grad_z");
    EXPECT_EQ(rotate(grad, z, q, n, dim, true), rotate(grad, z, q, n, dim));
  }
}

TEST_P(CodebookTrainingTest, TheRotationOfParallelVectorsOnlyScales) {
  expect_near(rotate({1, 2, 3}, {0.5, -1, 2}, {1, -2, 4}, 1, 3), {2, 4, 6},
              4 * GetParam().tolerance, "grad_z");
}

TEST_P(CodebookTrainingTest, WithoutARotationTheGradientGoesStraightThrough) {
  const Values grad = {1, 2, 3, 4, 5, 6};
  EXPECT_EQ(rotate(grad, {0, 0, 1, 1, 1, 2}, {1, 1, 0, 0, -2, -4}, 3, 2), grad);
  EXPECT_TRUE(rotate({}, {}, {}, 0, 3).empty());
}

TEST_P(CodebookTrainingTest, CountsCodes) {
  const Buffer counts = make_counts({5, 0, 0, 1});
  count_codes(counts.view(), make_int_tensor(GetParam(), {0, 2, 2, 3, 2, 0}).view(), stream_);
  EXPECT_EQ(to_host<int64_t>(counts.view()), (std::vector<int64_t>{7, 0, 3, 2}));
  count_codes(counts.view(), make_int_tensor(GetParam(), {}).view(), stream_);
  EXPECT_EQ(to_host<int64_t>(counts.view()), (std::vector<int64_t>{7, 0, 3, 2}));

  std::vector<int32_t> many(10007);
  std::vector<int64_t> expected(129);
  for (size_t i = 0; i < many.size(); ++i) ++expected[many[i] = static_cast<int32_t>(i * i % 129)];
  const Buffer of_many = make_counts(std::vector<int64_t>(129));
  count_codes(of_many.view(), make_int_tensor(GetParam(), many).view(), stream_);
  EXPECT_EQ(to_host<int64_t>(of_many.view()), expected);
}

TEST_P(CodebookTrainingTest, ThreeCodesMoveTowardsTheirMovingAverages) {
  // Code 0: two items at (3, 1) and (5, 1). Code 1: none. Code 2: one item at (0, 4), its first.
  const Buffer codebook = make_tensor(GetParam(), {3, 2}, {1, 1, 7, 7, 2, 2});
  const Buffer ema_counts = make_tensor(GetParam(), {3}, {4, 8, 0});
  const Buffer grad = make_tensor(GetParam(), {3, 2}, {-6, 0, 99, 99, 2, -2});
  const Buffer counts = make_counts({2, 0, 1});
  ema_codebook_update(codebook.view(), ema_counts.view(), grad.view(), counts.view(), 0.75,
                      stream_);
  const double count0 = 0.75 * 4 + 0.25 * 2;
  expect_near(to_doubles(ema_counts.view()), {count0, 6, 0.25}, GetParam().tolerance, "counts");
  // sums: 0.75 * 4 * (1, 1) + 0.25 * ((3, 1) + (5, 1)), and 0.25 * (0, 4)
  expect_near(to_doubles(codebook.view()), {(3 + 0.25 * 8) / count0, 3.5 / count0, 7, 7, 0, 4},
              4 * GetParam().tolerance, "codebook");
}

TEST_P(CodebookTrainingTest, TheMovingAverageFollowsTheFormulaForAnySize) {
  for (const auto& [size, dim] : {std::array<int64_t, 2>{0, 3}, {1, 1}, {9, 33}, {300, 64}}) {
    const Values rows = random_values(size * dim, 1), grad = random_values(size * dim, 2);
    Values before(size), after(size), expected = rows;
    std::vector<int64_t> counts(size);
    for (int64_t k = 0; k < size; ++k) {
      before[k] = static_cast<double>(k % 7), counts[k] = k % 4;
      after[k] = 0.875 * before[k] + 0.125 * static_cast<double>(counts[k]);
      for (int64_t c = 0; c < dim && counts[k] > 0; ++c) {
        expected[k * dim + c] -= 0.125 / after[k] * grad[k * dim + c];
      }
    }
    const Buffer codebook = make_tensor(GetParam(), {size, dim}, rows);
    const Buffer ema_counts = make_tensor(GetParam(), {size}, before);
    ema_codebook_update(codebook.view(), ema_counts.view(),
                        make_tensor(GetParam(), {size, dim}, grad).view(),
                        make_counts(counts).view(), 0.875, stream_);
    expect_near(to_doubles(codebook.view()), expected, 4 * GetParam().tolerance, "codebook");
    expect_near(to_doubles(ema_counts.view()), after, GetParam().tolerance, "ema_counts");
  }
}

TEST_P(CodebookTrainingTest, DoesNotDependOnTheNumberOfThreads) {
  if (GetParam().device != Device::kCpu) GTEST_SKIP() << "CPU only";
  const Values x = random_values(301 * 77, 1), y = random_values(301 * 77, 2);
  expect_same_for_any_number_of_threads([&] { return rotate(y, x, y, 301, 77); });
}

TEST_P(CodebookTrainingTest, RefusesOperandsThatDisagree) {
  const Buffer cube = empty_tensor(GetParam(), {3, 2, 4}),
               matrix = empty_tensor(GetParam(), {2, 4});
  const Buffer two = make_int_tensor(GetParam(), {0, 2}), four = make_counts({0, 0, 0, 0});
  const TensorView residuals = cube.view(), x = matrix.view(), kept = two.view();
  const TensorView counts = four.view();
  expect_error("residuals have shape [2, 4], wanted", [&] { sum_kept_codes(x, x, kept, stream_); });
  expect_error("out has shape [4, 2], wanted [2, 4]", [&] {
    sum_kept_codes(x.reshaped({4, 2}), residuals, kept, stream_);
  });
  expect_error("num_kept has shape [1], wanted [2]",
               [&] { sum_kept_codes(x, residuals, kept.rows(0, 1), stream_); });
  expect_error("z has shape [8], wanted",
               [&] { rotation_backward(x, x, x.reshaped({8}), x, stream_); });
  expect_error("quantized has shape [4, 2], wanted [2, 4]", [&] {
    rotation_backward(x, x, x, x.reshaped({4, 2}), stream_);
  });
  expect_error("grad_z has shape [4, 2], wanted [2, 4]", [&] {
    rotation_backward(x.reshaped({4, 2}), x, x, x, stream_);
  });
  expect_error("grad_quantized has shape [4, 2], wanted [2, 4]", [&] {
    rotation_backward(x, x.reshaped({4, 2}), x, x, stream_);
  });
  expect_error("counts are int32 [2], wanted int64 [2]", [&] { count_codes(kept, kept, stream_); });
  const TensorView row = x.reshaped({8}).rows(0, 2);
  expect_error("codebook has shape [2], wanted",
               [&] { ema_codebook_update(row, row, x, counts.rows(0, 2), 0.5, stream_); });
  expect_error("ema_counts has shape [2, 4], wanted [2]",
               [&] { ema_codebook_update(x, x, x, counts.rows(0, 2), 0.5, stream_); });
  expect_error("counts are int64 [4], wanted int64 [2]",
               [&] { ema_codebook_update(x, row, x, counts, 0.5, stream_); });
  expect_error("grad has shape [4, 2], wanted [2, 4]", [&] {
    ema_codebook_update(x, row, x.reshaped({4, 2}), counts.rows(0, 2), 0.5, stream_);
  });
  expect_error("decay must be from 0 to below 1, not 1",
               [&] { ema_codebook_update(x, row, x, counts.rows(0, 2), 1, stream_); });
  if (GetParam().device != Device::kCpu) return;
  expect_error("num_kept[1] is 3, wanted 0 .. 2", [&] {
    sum_kept_codes(x, residuals, make_int_tensor(GetParam(), {0, 3}).view(), stream_);
  });
  expect_error("codes[0] is 4, wanted 0 .. 3",
               [&] { count_codes(counts, make_int_tensor(GetParam(), {4}).view(), stream_); });
}

}  // namespace
}  // namespace mirabelle::testing
