// Times every kernel at the shapes of a decoder block, in the type that the backend keeps weights and activations in, and says
// which share of the machine's own rate it reaches: for products, of one large product with inputs of the same type; for
// kernels that stream, of a plain copy. On a CPU the shapes are those of a Llama of about one billion parameters (hidden size
// 2048 and 5632), on a GPU those of Llama-2-70B (8192 and 28672); 2048 tokens, heads of 128.
//
//   kernels_bench [cpu|cuda] [--threads N] [--small] [--json FILE]
//
// --small shrinks the shapes for a smoke test. tests/kernels checks what the kernels compute; here one product is compared
// with the reference before the clock starts.
#include <CLI/CLI.hpp>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include <nlohmann/json.hpp>

#include "base/error.h"
#include "base/file.h"
#include "base/random.h"
#include "kernels/backend.h"
#include "tests/bench/random_tensor.h"
#include "tests/reference/reference.h"

namespace roundhouse {
namespace {

// What the machine can do, in operations and bytes a second.
struct Rates {
  double activations;  // products with inputs of the activation type
  double f32;
  double bytes;
};

class Bench {
 public:
  Bench(Backend& backend, const Rates& rates) : backend_(backend), rates_(rates) {}

  // The median of five runs, after one to warm up. `prepare` is not timed.
  double seconds(const std::function<void()>& prepare, const std::function<void()>& run) {
    std::vector<double> times;
    for (int i = 0; i < 6; ++i) {
      prepare();
      backend_.sync();
      const auto start = std::chrono::steady_clock::now();
      run();
      backend_.sync();
      times.push_back(
          std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
    }
    std::sort(times.begin() + 1, times.end());
    return times[3];
  }
  double seconds(const std::function<void()>& run) {
    return seconds([] {}, run);
  }

  // `inputs`: the type of what is multiplied.
  void add_flops(const std::string& name, DType inputs, double seconds, double flops) {
    add(name, seconds, flops / seconds, inputs == DType::kF32 ? rates_.f32 : rates_.activations,
        "FLOP/s");
  }
  void add_bytes(const std::string& name, double seconds, double bytes) {
    add(name, seconds, bytes / seconds, rates_.bytes, "B/s");
  }
  // Of a kernel that treats rows one by one; beside the rate of its bytes.
  void add_rows(const std::string& name, double seconds, double rows, double bytes) {
    add_bytes(name, seconds, bytes);
    std::printf("%-44s %12.0f rows/s\n", "", rows / seconds);
    results_.back()["rows_per_second"] = rows / seconds;
  }
  nlohmann::json results() const { return results_; }

 private:
  void add(const std::string& name, double seconds, double rate, double machine, const char* unit) {
    std::printf("%-44s %9.3f ms %9.1f G%-6s %4.0f %%\n", name.c_str(), seconds * 1e3, rate * 1e-9,
                unit, 100.0 * rate / machine);
    std::fflush(stdout);
    results_.push_back({{"name", name},
                        {"seconds", seconds},
                        {"rate", rate},
                        {"unit", unit},
                        {"share", rate / machine}});
  }
  Backend& backend_;
  Rates rates_;
  nlohmann::json results_ = nlohmann::json::array();
};

// A product of the reference, so that the rates below are those of correct results.
void check_against_reference(Backend& backend) {
  constexpr std::int64_t kSize = 100;
  const Tensor a = random_tensor(backend, DType::kF32, kSize, kSize);
  Tensor c(backend, DType::kF32, kSize, kSize);
  backend.matmul({.a = a.view(), .b = a.view(), .transpose_b = true, .c = c.view()});
  std::vector<float> from(kSize * kSize), got(kSize * kSize);
  backend.download(a.view().data, std::as_writable_bytes(std::span(from)));
  backend.download(c.view().data, std::as_writable_bytes(std::span(got)));
  reference::Matrix m(kSize, kSize);
  std::copy(from.begin(), from.end(), m.values.begin());
  const reference::Matrix want = reference::product(m, reference::transpose(m));
  for (std::size_t i = 0; i < got.size(); ++i) {
    require(std::abs(static_cast<double>(got[i]) - want.values[i]) < 1e-3,
            "a product differs from the reference");
  }
}

struct Shapes {
  std::int64_t tokens, hidden, inner, vocabulary, square, kv_share;  // heads a key/value head
};
constexpr Shapes kSmall{128, 256, 704, 1000, 512, 2};
constexpr Shapes kOneBillion{2048, 2048, 5632, 32000, 4096, 4};
constexpr Shapes kSeventyBillion{2048, 8192, 28672, 32000, 8192, 8};
constexpr std::int64_t kHeadDim = 128;
constexpr std::int64_t kGroup = 128;

double real(std::int64_t n) { return static_cast<double>(n); }
double moved(const Tensor& t) { return static_cast<double>(t.bytes()); }

std::string shape(const char* name, std::int64_t a, std::int64_t b, std::int64_t c = 0) {
  return std::string(name) + " " + std::to_string(a) + " x " + std::to_string(b) +
         (c > 0 ? " x " + std::to_string(c) : "");
}

double copy_rate(Backend& backend, std::int64_t n) {
  const Tensor from = random_tensor(backend, DType::kF32, n, n);
  Tensor to(backend, DType::kF32, n, n);
  Bench bench(backend, {});
  return 2 * moved(to) / bench.seconds([&] { backend.copy(from.view(), to.view()); });
}

void time_linear(Backend& backend, Bench& bench, std::int64_t tokens, std::int64_t in,
                 std::int64_t out) {
  const DType type = backend.activation_type();
  const Tensor x = random_tensor(backend, type, tokens, in);
  const Tensor w = random_tensor(backend, type, out, in);
  Tensor y(backend, type, tokens, out);
  const double time = bench.seconds(
      [&] { backend.linear({.x = x.view(), .w = w.view(), .bias = {}, .y = y.view()}); });
  bench.add_flops(shape("linear", tokens, in, out), type, time,
                  2 * real(tokens) * real(in) * real(out));
}

// A Gram matrix and its way to U, as GPTQ goes it.
void time_hessian(Backend& backend, Bench& bench, std::int64_t tokens, std::int64_t n) {
  const DType type = backend.activation_type();
  const Tensor x = random_tensor(backend, type, tokens, n);
  Tensor h(backend, DType::kF32, n, n);
  Tensor work(backend, DType::kF32, n, n);
  backend.zero(h.view());
  bench.add_flops(shape("gram", tokens, n), type,
                  bench.seconds([&] { backend.gram({.x = x.view(), .h = h.view()}); }),
                  real(tokens) * real(n) * real(n));

  // Fewer tokens than columns make a singular matrix: damp it. The sum of six, with a diagonal of about 6 tokens.
  const std::vector<float> values(static_cast<std::size_t>(n), 13.0f * static_cast<float>(tokens));
  Tensor diagonal(backend, DType::kF32, n, 1);
  backend.upload(std::as_bytes(std::span(values)), diagonal.view().data);
  backend.copy(diagonal.view(), Matrix{h.view().data, DType::kF32, n, 1, n + 1});
  const double cube = real(n) * real(n) * real(n);
  bench.add_flops(
      shape("cholesky", n, n), DType::kF32,
      bench.seconds(
          [&] { backend.copy(h.view(), work.view()); },
          [&] { require(backend.cholesky({.a = work.view()}), "not positive definite"); }),
      cube / 3);
  Tensor inverse(backend, DType::kF32, n, n);
  bench.add_flops(shape("triangular_inverse", n, n), DType::kF32,
                  bench.seconds([&] { backend.copy(work.view(), inverse.view()); },
                                [&] { backend.triangular_inverse({.l = inverse.view()}); }),
                  cube / 3);
  bench.add_bytes(shape("symmetrize", n, n), bench.seconds([&] { backend.symmetrize(h.view()); }),
                  moved(h));
  bench.add_bytes(shape("reverse", n, n),
                  bench.seconds([&] { backend.reverse(h.view(), work.view()); }), 2 * moved(h));
  bench.add_bytes(shape("add", n, n), bench.seconds([&] { backend.add(h.view(), inverse.view()); }),
                  3 * moved(h));
}

void time_transformer(Backend& backend, Bench& bench, const Shapes& s) {
  const DType type = backend.activation_type();
  const Tensor x = random_tensor(backend, type, s.tokens, s.hidden);
  const Tensor weight = random_tensor(backend, type, 1, s.hidden);
  Tensor y(backend, type, s.tokens, s.hidden);
  const std::int64_t heads = s.hidden / kHeadDim;
  for (const std::int64_t kv_heads : {heads, heads / s.kv_share}) {
    const Tensor kv = random_tensor(backend, type, s.tokens, kv_heads * kHeadDim);
    const double time = bench.seconds([&] {
      backend.attention({.q = x.view(),
                         .k = kv.view(),
                         .v = kv.view(),
                         .out = y.view(),
                         .heads = heads,
                         .kv_heads = kv_heads,
                         .head_dim = kHeadDim,
                         .length = s.tokens,
                         .window = 0,
                         .scale = 1 / std::sqrt(static_cast<float>(kHeadDim))});
    });
    bench.add_flops(shape("attention (causal half), heads / kv heads", heads, kv_heads), type, time,
                    2 * real(s.tokens) * real(s.tokens) * real(s.hidden));
  }
  bench.add_bytes(shape("rms_norm", s.tokens, s.hidden), bench.seconds([&] {
    backend.rms_norm({.x = x.view(), .weight = weight.view(), .y = y.view(), .epsilon = 1e-5f});
  }),
                  2 * moved(y));
  // Heads as rows, as the norms of queries have them.
  Matrix of_heads = y.view();
  of_heads.rows *= heads;
  of_heads.cols = of_heads.stride = kHeadDim;
  bench.add_bytes(shape("rms_norm", of_heads.rows, kHeadDim), bench.seconds([&] {
    backend.rms_norm({.x = of_heads,
                      .weight = std::as_const(weight).view().col_range(0, kHeadDim),
                      .y = of_heads,
                      .epsilon = 1e-5f});
  }),
                  2 * moved(y));
  bench.add_bytes(shape("scaled_sum", s.tokens, s.hidden), bench.seconds([&] {
    backend.scaled_sum({.x = x.view(), .scale = 0.5f, .y = y.view()});
  }),
                  3 * moved(y));
  const Tensor table = random_tensor(backend, DType::kF32, s.tokens, kHeadDim / 2, 0.5);
  bench.add_bytes(shape("rope", s.tokens, s.hidden), bench.seconds([&] {
    backend.rope({.x = y.view(),
                  .cos = table.view(),
                  .sin = table.view(),
                  .heads = heads,
                  .head_dim = kHeadDim,
                  .length = s.tokens});
  }),
                  2 * moved(y));
  const Tensor gate = random_tensor(backend, type, s.tokens, s.inner);
  Tensor gated(backend, type, s.tokens, s.inner);
  bench.add_bytes(shape("gated_product", s.tokens, s.inner), bench.seconds([&] {
    backend.gated_product({.gate = gate.view(), .up = gate.view(), .y = gated.view()});
  }),
                  2 * moved(gated));
  const Tensor logits = random_tensor(backend, type, s.tokens / 4, s.vocabulary);
  const std::vector<std::int32_t> target(static_cast<std::size_t>(s.tokens / 4), 1);
  std::vector<float> loss(target.size());
  bench.add_bytes(shape("cross_entropy", s.tokens / 4, s.vocabulary), bench.seconds([&] {
    backend.cross_entropy({.logits = logits.view(), .target = target, .loss = loss});
  }),
                  moved(logits));
  std::vector<std::uint8_t> finite(4);
  bench.add_bytes(shape("check_finite", s.tokens, s.inner), bench.seconds([&] {
    backend.check_finite({.x = gate.view(), .rows_each = s.tokens / 4, .finite = finite});
  }),
                  moved(gate));
}

void time_quantization(Backend& backend, Bench& bench, const Shapes& s) {
  const std::int64_t groups = (s.hidden + kGroup - 1) / kGroup;
  const Tensor w = random_tensor(backend, DType::kF32, s.inner, s.hidden, 0.02);
  Tensor scales(backend, DType::kF32, s.inner, groups);
  Tensor zeros(backend, DType::kU8, s.inner, groups);
  Tensor codes(backend, DType::kU8, s.inner, s.hidden);
  Tensor values(backend, DType::kF32, s.inner, s.hidden);
  FindGrid find{.w = w.view(),
                .group_size = kGroup,
                .grid = Grid::kAsymGptq,
                .bits = 4,
                .clip = {.steps = 80, .norm = 2.4f},
                .scales = scales.view(),
                .zeros = zeros.view()};
  bench.add_bytes(shape("find_grid, 80 clip steps", s.inner, s.hidden),
                  bench.seconds([&] { backend.find_grid(find); }), moved(w));
  find.clip.steps = 0;
  bench.add_bytes(shape("find_grid", s.inner, s.hidden),
                  bench.seconds([&] { backend.find_grid(find); }), moved(w));
  bench.add_bytes(shape("round_to_grid", s.inner, s.hidden), bench.seconds([&] {
    backend.round_to_grid({.w = w.view(),
                           .group_size = kGroup,
                           .bits = 4,
                           .scales = scales.view(),
                           .zeros = zeros.view(),
                           .codes = codes.view()});
  }),
                  moved(w) + moved(codes));
  bench.add_bytes(shape("dequantize", s.inner, s.hidden), bench.seconds([&] {
    backend.dequantize({.codes = codes.view(),
                        .group_size = kGroup,
                        .scales = scales.view(),
                        .zeros = zeros.view(),
                        .group_of_column = {},
                        .w = values.view()});
  }),
                  moved(w) + moved(codes));

  Tensor u(backend, DType::kF32, kGroup, kGroup);  // upper triangle: 1 and small numbers beside it
  std::vector<float> host(static_cast<std::size_t>(kGroup * kGroup), 0.0f);
  for (std::int64_t i = 0; i < kGroup; ++i) {
    for (std::int64_t j = i; j < kGroup; ++j) {
      host[i * kGroup + j] = i == j ? 1.0f : 0.01f * static_cast<float>((i * 7 + j * 3) % 11 - 5);
    }
  }
  backend.upload(std::as_bytes(std::span(host)), u.view().data);
  Tensor column_scales(backend, DType::kF32, s.inner, kGroup);
  std::vector<float> ones(static_cast<std::size_t>(s.inner * kGroup), 0.01f);
  backend.upload(std::as_bytes(std::span(ones)), column_scales.view().data);
  Tensor column_zeros(backend, DType::kU8, s.inner, kGroup);
  backend.zero(column_zeros.view());
  Tensor errors(backend, DType::kF32, s.inner, kGroup);
  Tensor row_loss(backend, DType::kF32, s.inner, 1);
  backend.zero(row_loss.view());
  const auto panel = [&] {
    backend.gptq_panel({.w = values.view().col_range(0, kGroup),
                        .u = u.view(),
                        .bits = 4,
                        .scales = column_scales.view(),
                        .zeros = column_zeros.view(),
                        .codes = codes.view().col_range(0, kGroup),
                        .errors = errors.view(),
                        .row_loss = row_loss.view()});
  };
  bench.add_flops(shape("gptq_panel", s.inner, kGroup), DType::kF32,
                  bench.seconds([&] { backend.copy(w.view(), values.view()); }, panel),
                  real(s.inner) * real(kGroup) * real(kGroup));
}

// k-means of rows. What it could reach at most is to read weights and sensitivities and write codes at the memory's rate.
void time_clusters(Backend& backend, Bench& bench, const Shapes& s) {
  constexpr int kBits = 4;
  for (const std::int64_t cols : {s.hidden, s.inner}) {
    const std::int64_t rows = s.hidden / 8;
    const Tensor w = random_tensor(backend, DType::kF32, rows, cols, 0.02);
    const Tensor gradient = random_tensor(backend, DType::kF32, rows, cols);
    Tensor sensitivity(backend, DType::kF32, rows, cols);
    backend.zero(sensitivity.view());
    backend.add_gradient({.gradient = gradient.view(), .sum = {}, .squares = sensitivity.view()});
    Tensor tables(backend, DType::kF32, rows, 1 << kBits);
    Tensor codes(backend, DType::kU8, rows, cols);
    std::vector<ClusteredRow> report(static_cast<std::size_t>(rows));
    bench.add_rows(shape("cluster_rows, 4 bits", rows, cols), bench.seconds([&] {
      backend.cluster_rows({.w = w.view(),
                            .sensitivity = sensitivity.view(),
                            .bits = kBits,
                            .tables = tables.view(),
                            .codes = codes.view(),
                            .rows = report});
    }),
                   real(rows), 2 * moved(w) + moved(codes));
    Tensor values(backend, backend.activation_type(), rows, cols);
    bench.add_bytes(shape("dequantize_table", rows, cols), bench.seconds([&] {
      backend.dequantize_table(
          {.codes = codes.view(), .tables = tables.view(), .sparse = {}, .w = values.view()});
    }),
                    moved(codes) + moved(values));
    bench.add_bytes(shape("add_gradient, squares", rows, cols), bench.seconds([&] {
      backend.add_gradient({.gradient = gradient.view(), .sum = {}, .squares = sensitivity.view()});
    }),
                    3 * moved(gradient));
  }
}

// One vector times a matrix of quantized weights, beside the same matrix in 16 bits (F32 on a CPU). Rates are of the bytes
// that have to be read; the share says how near that is to the memory's own rate.
void time_quantized_products(Backend& backend, Bench& bench, const Shapes& s) {
  constexpr int kRepeats = 20;  // a product takes little longer than to start and to wait for it
  const DType type = backend.is_host_memory() ? DType::kF32 : DType::kF16;
  const std::int64_t rows = s.inner, cols = s.hidden, groups = (cols + kGroup - 1) / kGroup;
  const Tensor x = random_tensor(backend, type, 1, cols);
  Tensor y(backend, type, 1, rows);
  const auto repeated = [&](const auto& product) {
    return bench.seconds([&] {
      for (int i = 0; i < kRepeats; ++i) product();
    }) / kRepeats;
  };
  const Tensor w = random_tensor(backend, type, rows, cols, 0.02);
  const double plain =
      repeated([&] { backend.linear({.x = x.view(), .w = w.view(), .bias = {}, .y = y.view()}); });
  bench.add_bytes(shape((std::string(name_of(type)) + " vector x matrix").c_str(), cols, rows),
                  plain, moved(w));

  std::vector<std::uint8_t> host_codes(static_cast<std::size_t>(rows * cols));
  for (const int bits : {2, 3, 4}) {
    Random random(static_cast<std::uint64_t>(bits));
    for (std::uint8_t& code : host_codes)
      code = static_cast<std::uint8_t>(random.next() >> (64 - bits));
    Tensor codes(backend, DType::kU8, rows, cols);
    backend.upload(std::as_bytes(std::span(host_codes)), codes.view().data);
    Tensor packed(backend, DType::kU32, rows, packed_words_of_row(cols, bits));
    backend.pack_codes({.codes = codes.view(), .bits = bits, .packed = packed.view()});
    const Tensor scales = random_tensor(backend, DType::kF16, rows, groups, 0.01);
    const Tensor tables = random_tensor(backend, DType::kF32, rows, std::int64_t{1} << bits, 0.02);
    Tensor zeros(backend, DType::kU8, rows, groups);
    backend.zero(zeros.view());
    // 0.45 % of the weights: every 222nd.
    std::vector<std::int64_t> starts{0}, columns;
    for (std::int64_t row = 0; row < rows; ++row) {
      for (std::int64_t column = row % 222; column < cols; column += 222) columns.push_back(column);
      starts.push_back(static_cast<std::int64_t>(columns.size()));
    }
    const Tensor values =
        random_tensor(backend, DType::kF32, 1, static_cast<std::int64_t>(columns.size()));
    const Tensor device_starts = upload_index(starts, backend);
    const Tensor device_columns = upload_index(columns, backend);
    const auto add = [&](const std::string& what, double seconds, double bytes) {
      bench.add_bytes(std::to_string(bits) + " bits, " + what, seconds, bytes);
      std::printf("%-44s %12.2f x the speed of %s\n", "", plain / seconds,
                  std::string(name_of(type)).c_str());
    };
    add("uniform vector x matrix", repeated([&] {
          backend.multiply_uniform({.x = x.view(),
                                    .packed = packed.view(),
                                    .bits = bits,
                                    .group_size = kGroup,
                                    .scales = scales.view(),
                                    .zeros = zeros.view(),
                                    .y = y.view()});
        }),
        moved(packed) + moved(scales) + moved(zeros));
    for (const bool sparse : {false, true}) {
      add(sparse ? "table + 0.45 % sparse vector x matrix" : "table vector x matrix", repeated([&] {
            backend.multiply_table(
                {.x = x.view(),
                 .packed = packed.view(),
                 .bits = bits,
                 .tables = tables.view(),
                 .sparse =
                     sparse ? SparseRows{device_starts.view(), device_columns.view(), values.view()}
                            : SparseRows{},
                 .y = y.view()});
          }),
          moved(packed) + moved(tables) +
              (sparse ? moved(values) + moved(device_columns) + moved(device_starts) : 0.0));
    }
  }
}

nlohmann::json time_all(Backend& backend, const Shapes& s) {
  const DType type = backend.activation_type();
  const double f32 = matmul_rate(backend, DType::kF32, s.square);
  const Rates rates{type == DType::kF32 ? f32 : matmul_rate(backend, type, s.square), f32,
                    copy_rate(backend, s.square)};
  const std::string type_name(name_of(type));
  std::printf("%s: products of %lld: %.1f GFLOP/s with %s inputs, %.1f in F32; copy %.1f GB/s\n",
              backend.description().c_str(), static_cast<long long>(s.square),
              rates.activations / 1e9, type_name.c_str(), f32 / 1e9, rates.bytes / 1e9);
  Bench bench(backend, rates);
  time_linear(backend, bench, s.tokens, s.hidden, s.inner);
  time_linear(backend, bench, s.tokens, s.inner, s.hidden);
  time_linear(backend, bench, s.tokens, s.hidden, s.hidden / 8);
  time_hessian(backend, bench, s.tokens, s.hidden);
  time_hessian(backend, bench, s.tokens, s.inner);
  time_transformer(backend, bench, s);
  time_quantization(backend, bench, s);
  time_clusters(backend, bench, s);
  time_quantized_products(backend, bench, s);
  return {{"device", backend.description()},       {"activations", type_name},
          {"flops_per_second", rates.activations}, {"f32_flops_per_second", rates.f32},
          {"copy_bytes_per_second", rates.bytes},  {"kernels", bench.results()}};
}

}  // namespace
}  // namespace roundhouse

int main(int argc, char** argv) {
  using namespace roundhouse;
  std::string device = "cpu", json;
  int threads = 0;
  bool small = false, bf16 = false;
  CLI::App app("Times every kernel beside the machine's own rates");
  app.add_option("device", device, "cpu or cuda")->capture_default_str();
  app.add_option("--threads", threads, "of a CPU; 0: all")->capture_default_str();
  app.add_flag("--bf16", bf16, "products of activations with BF16 factors, on a CPU that has them");
  app.add_flag("--small", small, "for a smoke test");
  app.add_option("--json", json, "write the figures to this file too");
  CLI11_PARSE(app, argc, argv);
  try {
    const auto backend = make_backend(device, {.threads = threads, .bf16 = bf16});
    check_against_reference(*backend);
    const nlohmann::json results = time_all(
        *backend, small ? kSmall : (backend->is_host_memory() ? kOneBillion : kSeventyBillion));
    if (!json.empty()) write_text_atomically(json, results.dump(1) + "\n");
  } catch (const std::exception& error) {
    std::fprintf(stderr, "kernels_bench: %s\n", error.what());
    return 1;
  }
}
