#include "kernels/lookup_table.h"

#include <algorithm>
#include <fstream>
#include <numeric>

#include <nlohmann/json.hpp>

#include "base/error.h"
#include "tests/kernels/backend_test.h"
#include "tests/reference/lookup_table.h"
#include "tests/source_folder.h"

namespace roundhouse {
namespace {

using LookupTableTest = BackendTest;
using reference::Matrix;

const double kNaN = std::numeric_limits<double>::quiet_NaN();

struct Clustered {
  Matrix tables, codes;
  std::vector<ClusteredRow> rows;

  double error() const {
    return std::accumulate(rows.begin(), rows.end(), 0.0,
                           [](double sum, const ClusteredRow& row) { return sum + row.error; });
  }
};

struct Settings {
  bool exact = false;
  int steps = 50;
  std::int64_t extra = 3;
};

Clustered cluster(Backend& backend, const Matrix& w, const Matrix& sensitivity, int bits,
                  Settings settings = {}) {
  Wide device(backend, w, {.extra = settings.extra});
  Wide weights(backend, sensitivity, {.extra = settings.extra});
  Wide tables(backend, constant_matrix(w.rows, std::int64_t{1} << bits, kNaN));
  Wide codes(backend, constant_matrix(w.rows, w.cols, 200), {DType::kU8, settings.extra});
  std::vector<ClusteredRow> rows(static_cast<std::size_t>(w.rows));
  backend.cluster_rows({.w = device,
                        .sensitivity = weights,
                        .bits = bits,
                        .steps = settings.steps,
                        .exact = settings.exact,
                        .tables = tables,
                        .codes = codes,
                        .rows = rows});
  return {download(backend, tables), download(backend, codes), rows};
}

// Like gradients' squares: over many orders of magnitude.
Matrix random_sensitivity(std::int64_t rows, std::int64_t cols, std::uint64_t seed, double tail) {
  Matrix m = random_matrix(rows, cols, seed);
  Random random(seed + 1);
  for (double& value : m.values) {
    value = static_cast<double>(
        static_cast<float>(1e-7 * value * value * std::exp(tail * random.normal())));
  }
  return m;
}

Matrix row_of(std::vector<double> values) {
  Matrix m(1, static_cast<std::int64_t>(values.size()));
  m.values = std::move(values);
  return m;
}

bool same_bits(const Clustered& a, const Clustered& b) {
  return a.tables.values == b.tables.values && a.codes.values == b.codes.values &&
         std::ranges::equal(a.rows, b.rows, [](const ClusteredRow& x, const ClusteredRow& y) {
           return x.error == y.error && x.unit_weights == y.unit_weights &&
                  x.few_values == y.few_values;
         });
}

TEST_P(LookupTableTest, AHandWorkedRow) {
  const Matrix w = row_of({31, 0, 1, 11, 10, 20, 21, 30});
  for (const bool exact : {false, true}) {
    const Clustered even = cluster(backend(), w, constant_matrix(1, 8, 1.0), 2, {.exact = exact});
    EXPECT_EQ(even.tables.values, (std::vector<double>{0.5, 10.5, 20.5, 30.5}));
    EXPECT_EQ(even.codes.values, (std::vector<double>{3, 0, 0, 1, 1, 2, 2, 3}));
    EXPECT_EQ(even.rows[0].error, 2.0);
    // The mean of 0 and of three times 1 is 0.75: 0.75² + 3 x 0.25² = 0.75.
    const Clustered uneven =
        cluster(backend(), w, row_of({1, 1, 3, 1, 1, 1, 1, 1}), 2, {.exact = exact});
    EXPECT_EQ(uneven.tables.values, (std::vector<double>{0.75, 10.5, 20.5, 30.5}));
    EXPECT_EQ(uneven.rows[0].error, 2.25);
  }
}

TEST_P(LookupTableTest, ExactIsTheOptimumAndTheDefaultIsNear) {
  double least_sum = 0.0, default_sum = 0.0, seeds_sum = 0.0;
  for (const std::int64_t cols : {17, 64, 131}) {
    const Matrix w = random_matrix(4, cols, 3, 0.02);
    for (const double tail : {0.0, 3.0}) {
      const Matrix sensitivity = random_sensitivity(4, cols, 4, tail);
      for (const int bits : {1, 2, 3, 4}) {
        const Clustered exact = cluster(backend(), w, sensitivity, bits, {.exact = true});
        const Clustered fast = cluster(backend(), w, sensitivity, bits);
        const Clustered seeds = cluster(backend(), w, sensitivity, bits, {.steps = 0});
        for (std::int64_t row = 0; row < w.rows; ++row) {
          const auto at = static_cast<std::size_t>(row);
          const double least = reference::least_cluster_error(w, sensitivity, row, 1 << bits);
          // Centres are rounded to float16, by up to 2^-11 of themselves.
          double rounding = 0.0;
          for (std::int64_t j = 0; j < cols; ++j)
            rounding += sensitivity(row, j) * std::pow(w(row, j) * 0x1p-11, 2);
          const std::string what =
              std::to_string(cols) + " columns, " + std::to_string(bits) + " bits";
          EXPECT_LE(exact.rows[at].error, least + 4 * rounding + 1e-12 * least) << what;
          EXPECT_GE(exact.rows[at].error, least * (1 - 1e-12)) << what;
          EXPECT_GE(fast.rows[at].error, least * (1 - 1e-12)) << what;
          least_sum += least;
          default_sum += fast.rows[at].error;
          seeds_sum += seeds.rows[at].error;
        }
      }
    }
  }
  EXPECT_LT(default_sum, 1.05 * least_sum);
  EXPECT_GT(seeds_sum, 1.05 * default_sum);  // what the steps are for
}

TEST_P(LookupTableTest, CodesAreTheNearestOfAnAscendingTableOfFloat16s) {
  for (const std::int64_t cols : {1, 2, 5, 16, 257, 1000}) {
    const Matrix w = random_matrix(3, cols, 5);
    const Matrix sensitivity = random_sensitivity(3, cols, 6, 2.0);
    for (const bool exact : {false, true}) {
      const Clustered r =
          cluster(backend(), w, sensitivity, 3, {.exact = exact, .extra = cols % 8 == 0 ? 8 : 3});
      const std::vector<double> errors = reference::table_errors(w, sensitivity, r.tables, r.codes);
      for (std::int64_t i = 0; i < 3; ++i) {
        for (int k = 0; k < 8; ++k) {
          ASSERT_EQ(r.tables(i, k),
                    static_cast<double>(round_to_half(static_cast<float>(r.tables(i, k)))));
          ASSERT_LE(r.tables(i, std::max(k - 1, 0)), r.tables(i, k));
        }
        for (std::int64_t j = 0; j < cols; ++j) {
          const double distance =
              std::abs(w(i, j) - r.tables(i, static_cast<std::int64_t>(r.codes(i, j))));
          for (int k = 0; k < 8; ++k)
            ASSERT_LE(distance, std::abs(w(i, j) - r.tables(i, k))) << cols << ", " << j;
        }
        const double error = r.rows[i].error;
        ASSERT_NEAR(error, errors[i], 1e-12 * error);
      }
    }
  }
}

TEST_P(LookupTableTest, NoWorseThanScikitLearnWithTheAuthorsSettings) {
  std::ifstream file(source_folder() / "tests/golden/kmeans.json");
  const nlohmann::json golden = nlohmann::json::parse(file);
  const std::int64_t rows = golden["rows"], cols = golden["columns"];
  Matrix w(rows, cols), sensitivity(rows, cols);
  Random random(golden["seed"]);
  for (std::int64_t i = 0; i < rows; ++i) {  // make_row() of tests/golden/make_kmeans.py
    const std::int64_t kind = i % 6;
    for (std::int64_t j = 0; j < cols; ++j) {
      double x = random.uniform();
      for (int term = 0; term < 3; ++term) x += random.uniform();
      x -= 2.0;
      const double u = random.uniform() + 0.01, v = random.uniform() + 0.001;
      const double s = kind < 2 ? u : 1.0 / (v * v);
      w(i, j) = static_cast<double>(static_cast<float>(kind % 3 != 0 ? 0.02 * x / u : 0.02 * x));
      sensitivity(i, j) =
          kind % 3 == 2 && u < 0.1 ? 0.0 : static_cast<double>(static_cast<float>(s));
    }
  }
  ASSERT_EQ(golden["first"], (std::vector<double>{w(0, 0), sensitivity(0, 0)}));
  ASSERT_EQ(golden["last"],
            (std::vector<double>{w(rows - 1, cols - 1), sensitivity(rows - 1, cols - 1)}));
  for (const int bits : {2, 3, 4}) {
    const std::vector<double> theirs = golden["errors"][std::to_string(bits)];
    const Clustered ours = cluster(backend(), w, sensitivity, bits);
    double ratio = 0.0;  // rows differ in scale: each counts as much
    for (std::size_t row = 0; row < theirs.size(); ++row)
      ratio += ours.rows[row].error / theirs[row];
    EXPECT_LE(ours.error(), std::accumulate(theirs.begin(), theirs.end(), 0.0)) << bits;
    EXPECT_LE(ratio, static_cast<double>(rows)) << bits;
    RecordProperty("mean_ratio_" + std::to_string(bits),
                   std::to_string(ratio / static_cast<double>(rows)));
  }
}

TEST_P(LookupTableTest, SensitivitiesThatAreAllZeroCountAsOne) {
  const Matrix w = random_matrix(2, 90, 7);
  Matrix sensitivity = constant_matrix(2, 90, 0.0);
  for (std::int64_t j = 0; j < 90; ++j) sensitivity(1, j) = 1.0;
  for (const bool exact : {false, true}) {
    Clustered r = cluster(backend(), w, sensitivity, 2, {.exact = exact});
    Clustered ones = cluster(backend(), w, constant_matrix(2, 90, 1.0), 2, {.exact = exact});
    EXPECT_EQ(r.rows[0].unit_weights, 1);
    EXPECT_EQ(r.rows[1].unit_weights, 0);
    EXPECT_GT(r.rows[0].error, 0.0);
    r.rows[0].unit_weights = 0;
    EXPECT_TRUE(same_bits(r, ones));
  }
}

TEST_P(LookupTableTest, FewDistinctWeightsAreKeptAsTheyAre) {
  const Matrix w = row_of({2, -0.0, 2, 0, -1, 2, 0, -1, -1, 0, 0, 2, 2, 0, -1, 0, 0, 2, 2});
  Matrix sensitivity = constant_matrix(1, w.cols, 1e-9);
  sensitivity(0, 0) = 1e9;
  for (const bool exact : {false, true}) {
    const Clustered r = cluster(backend(), w, sensitivity, 3, {.exact = exact});
    EXPECT_EQ(r.tables.values, (std::vector<double>{-1, 0, 2, 2, 2, 2, 2, 2}));
    EXPECT_EQ(r.rows[0].few_values, 1);
    EXPECT_EQ(r.rows[0].error, 0.0);
    const Clustered one =
        cluster(backend(), w, sensitivity, 1, {.exact = exact});  // three values, two entries
    EXPECT_EQ(one.rows[0].few_values, 0);
    EXPECT_EQ(one.tables(0, 1), 2.0);
  }
}

TEST_P(LookupTableTest, WeightsWithoutSensitivityMoveNothingAndHaveTheNearestCode) {
  const Matrix w = random_matrix(1, 40, 8);
  const Matrix sensitivity = random_sensitivity(1, 40, 9, 1.0);
  Matrix more(1, 60), with_zeros(1, 60);
  for (std::int64_t j = 0; j < 60; ++j) {
    const bool removed = j % 3 == 2;
    more(0, j) = removed ? (j % 2 == 0 ? 50.0 : 0.0) : w(0, j - j / 3);
    with_zeros(0, j) = removed ? 0.0 : sensitivity(0, j - j / 3);
  }
  const Clustered plain = cluster(backend(), w, sensitivity, 2, {.exact = true});
  const Clustered r = cluster(backend(), more, with_zeros, 2, {.exact = true});
  EXPECT_EQ(r.tables.values, plain.tables.values);
  EXPECT_NEAR(r.rows[0].error, plain.rows[0].error, 1e-12 * plain.rows[0].error);
  for (std::int64_t j = 2; j < 60; j += 3) {
    const auto code = static_cast<std::int64_t>(r.codes(0, j));
    for (int k = 0; k < 4; ++k) {
      EXPECT_LE(std::abs(more(0, j) - r.tables(0, code)), std::abs(more(0, j) - r.tables(0, k)));
    }
  }
  const Clustered fast = cluster(backend(), more, with_zeros, 2);
  for (const double value : fast.tables.values) EXPECT_LT(value, 5.0);  // 50 weighs nothing
}

TEST_P(LookupTableTest, AnErrorNamesRowAndColumnOfWhatCannotBe) {
  const double infinity = std::numeric_limits<double>::infinity();
  const auto message = [&](double weight, double sensitivity) {
    Matrix w = random_matrix(4, 9, 10), s = constant_matrix(4, 9, 1.0);
    w(2, 5) = weight;
    s(2, 5) = sensitivity;
    try {
      (void)cluster(backend(), w, s, 2);
    } catch (const Error& e) {
      return std::string(e.what());
    }
    return std::string("no error");
  };
  EXPECT_EQ(message(1, kNaN),
            "row 2, column 5: the sensitivity is nan, and has to be finite and not negative");
  EXPECT_EQ(message(1, infinity),
            "row 2, column 5: the sensitivity is inf, and has to be finite and not negative");
  EXPECT_EQ(message(1, -1),
            "row 2, column 5: the sensitivity is -1, and has to be finite and not negative");
  for (const double weight : {kNaN, -infinity, 65520.0}) {
    EXPECT_NE(message(weight, 1).find("row 2, column 5: the weight is"), std::string::npos)
        << message(weight, 1);
  }
  EXPECT_EQ(message(65519, 1), "no error");
}

TEST_P(LookupTableTest, SameBitsAsTheCpuWithAnyThreadsAndForRowsByThemselves) {
  const auto cpu = make_backend("cpu", {.threads = 1});
  for (const std::int64_t cols : {7, 300, 4096, 9001}) {
    const std::int64_t rows = cols > 4000 ? 2 : 5;
    Matrix w = random_matrix(rows, cols, 11, 0.02);
    w = cols == 300 ? rounded(DType::kBF16, w) : w;  // many equal weights
    const Matrix sensitivity = random_sensitivity(rows, cols, 12, 3.0);
    for (const int bits : {1, 2, 3, 4}) {
      for (const bool exact : {false, true}) {
        if (cols > 4000 && (exact || bits != 3)) continue;  // enough of so large ones
        const Settings settings{.exact = exact, .extra = cols % 8 == 0 ? 8 : 3};
        const Clustered want = cluster(*cpu, w, sensitivity, bits, settings);
        const std::string what =
            std::to_string(cols) + " columns, " + std::to_string(bits) + " bits";
        EXPECT_TRUE(same_bits(cluster(backend(), w, sensitivity, bits, settings), want)) << what;
        const auto three = make_backend(GetParam(), {.threads = 3});
        EXPECT_TRUE(same_bits(cluster(*three, w, sensitivity, bits, settings), want)) << what;
        Matrix last(1, cols), weights(1, cols);
        for (std::int64_t j = 0; j < cols; ++j) {
          last(0, j) = w(rows - 1, j);
          weights(0, j) = sensitivity(rows - 1, j);
        }
        const Clustered alone = cluster(backend(), last, weights, bits, settings);
        EXPECT_EQ(alone.rows[0].error, want.rows.back().error) << what;
      }
    }
  }
}

// [rows + 1], columns and values of a few entries a row, of none in every third.
struct Sparse {
  Sparse(Backend& backend, std::int64_t rows, std::int64_t cols) {
    std::vector<std::int64_t> row_starts{0}, entry_columns;
    Matrix entry_values(1, 0);
    Random random(14);
    for (std::int64_t row = 0; row < rows; ++row) {
      for (std::int64_t column = row % 5; row % 3 != 0 && column < cols; column += 1 + row * 7) {
        entries.push_back({row, column, static_cast<double>(static_cast<float>(random.normal()))});
        entry_columns.push_back(column);
        entry_values.values.push_back(entries.back().value);
      }
      row_starts.push_back(static_cast<std::int64_t>(entry_columns.size()));
    }
    entry_values.cols = static_cast<std::int64_t>(entry_columns.size());
    starts = upload_index(row_starts, backend);
    columns = upload_index(entry_columns, backend);
    values = std::make_unique<Wide>(backend, entry_values.cols > 0 ? entry_values : Matrix(1, 0));
  }
  SparseRows view() { return {starts.view(), columns.view(), *values}; }

  std::vector<reference::Entry> entries;
  Tensor starts, columns;
  std::unique_ptr<Wide> values;
};

TEST_P(LookupTableTest, DequantizesTablesAndAddsTheSparsePart) {
  for (const auto& [rows, cols] :
       {std::pair<std::int64_t, std::int64_t>{1, 1}, {7, 40}, {20, 131}, {0, 5}, {3, 0}}) {
    for (const std::int64_t entries : {4, 16}) {
      Matrix tables = random_matrix(rows, entries, 15);
      Matrix codes(rows, cols);
      for (std::size_t i = 0; i < codes.values.size(); ++i) {
        codes.values[i] = static_cast<double>(i * 7 % static_cast<std::size_t>(entries));
      }
      Sparse sparse(backend(), rows, cols);
      for (const DType type : {DType::kF32, DType::kBF16, DType::kF16}) {
        const std::int64_t extra = cols % 8 == 0 ? 8 : 3;
        Wide device_codes(backend(), codes, {DType::kU8, extra});
        Wide device_tables(backend(), tables);
        for (const bool with_sparse : {false, true}) {
          Wide w(backend(), constant_matrix(rows, cols, kNaN), {type, extra});
          backend().dequantize_table({.codes = device_codes,
                                      .tables = device_tables,
                                      .sparse = with_sparse ? sparse.view() : SparseRows{},
                                      .w = w});
          const Matrix want = reference::dequantize_table(
              codes, tables, with_sparse ? sparse.entries : std::vector<reference::Entry>{});
          // One addition in F32, then one rounding.
          expect_near(download(backend(), w), type == DType::kF32 ? want : rounded(type, want),
                      type == DType::kF32    ? 0x1p-23
                      : type == DType::kBF16 ? 0x1p-8
                                             : 0x1p-10);
          if (!with_sparse) {
            EXPECT_EQ(download(backend(), w).values, rounded(type, want).values);
          }
        }
      }
    }
  }
}

TEST_P(LookupTableTest, EntriesThatAreNotThereAreErrors) {
  const auto dequantize = [&](double code, std::int64_t column, std::int64_t end) {
    Wide codes(backend(), constant_matrix(1, 3, code), {DType::kU8, 3});
    Wide tables(backend(), Matrix(1, 4)), w(backend(), Matrix(1, 3)),
        values(backend(), Matrix(1, 1));
    const std::vector<std::int64_t> starts{0, end}, columns{column};
    const Tensor device_starts = upload_index(starts, backend()),
                 device_columns = upload_index(columns, backend());
    backend().dequantize_table({.codes = codes,
                                .tables = tables,
                                .sparse = {device_starts.view(), device_columns.view(), values},
                                .w = w});
    backend().sync();
  };
  EXPECT_NO_THROW(dequantize(3, 2, 1));
  if (GetParam() == "cuda") return;  // there the kernel ends, and with it the device
  EXPECT_THROW(dequantize(4, 2, 1), Error);
  EXPECT_THROW(dequantize(3, 3, 1), Error);
  EXPECT_THROW(dequantize(3, 2, 2), Error);
}

INSTANTIATE_TEST_SUITE_P(Backends, LookupTableTest, testing::ValuesIn(built_backends()),
                         backend_name);

}  // namespace
}  // namespace roundhouse
