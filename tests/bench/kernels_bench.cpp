// kernels_bench [BACKEND] [THREADS] [small]
// Times every kernel at the shapes of a decoder block like Llama's (hidden size 2048 and 5632 with
// 2048 tokens: a model of about one billion parameters) and says which share of the machine's own
// rate it reaches: for products, of one large matmul; for kernels that stream, of a plain copy.
// `small` shrinks the shapes for a smoke test. tests/kernels checks what the kernels compute; here
// one product is compared with the reference before the clock starts.
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <string>
#include <vector>

#include "base/error.h"
#include "base/random.h"
#include "kernels/backend.h"
#include "tests/reference/reference.h"

namespace roundhouse {
namespace {

Tensor random_tensor(Backend& backend, std::int64_t rows, std::int64_t cols, double scale = 1.0) {
  Random random(static_cast<std::uint64_t>(rows * 31 + cols));
  std::vector<float> host(static_cast<std::size_t>(rows * cols));
  // Sums of uniform numbers are close enough to normal ones, and quick.
  for (float& value : host) {
    value = static_cast<float>((random.uniform() + random.uniform() + random.uniform() - 1.5) * 2 *
                               scale);
  }
  Tensor tensor(backend, DType::kF32, rows, cols);
  backend.upload(std::as_bytes(std::span(host)), tensor.view().data);
  backend.sync();
  return tensor;
}

class Bench {
 public:
  explicit Bench(Backend& backend) : backend_(backend) {}

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

  void set_flop_rate(double rate) { flop_rate_ = rate; }
  void set_byte_rate(double rate) { byte_rate_ = rate; }
  void print_flops(const std::string& name, double seconds, double flops) const {
    print(name, seconds, flops / seconds, flop_rate_, "GFLOP/s");
  }
  void print_bytes(const std::string& name, double seconds, double bytes) const {
    print(name, seconds, bytes / seconds, byte_rate_, "GB/s");
  }

 private:
  static void print(const std::string& name, double seconds, double rate, double machine,
                    const char* unit) {
    std::printf("%-44s %9.3f ms %8.1f %-7s %4.0f %%\n", name.c_str(), seconds * 1e3, rate * 1e-9,
                unit, 100.0 * rate / machine);
    std::fflush(stdout);
  }
  Backend& backend_;
  double flop_rate_ = 1.0;
  double byte_rate_ = 1.0;
};

// A product of the reference, so that the rates below are those of correct results.
void check_against_reference(Backend& backend) {
  constexpr std::int64_t kSize = 100;
  const Tensor a = random_tensor(backend, kSize, kSize);
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
  std::int64_t tokens, hidden, inner, vocabulary, square;
};
constexpr std::int64_t kHeadDim = 64;
constexpr std::int64_t kGroup = 128;

double real(std::int64_t n) { return static_cast<double>(n); }
double bytes_of(const Tensor& t) { return static_cast<double>(t.bytes()); }

std::string shape(const char* name, std::int64_t a, std::int64_t b, std::int64_t c = 0) {
  return std::string(name) + " " + std::to_string(a) + " x " + std::to_string(b) +
         (c > 0 ? " x " + std::to_string(c) : "");
}

void measure_machine(Backend& backend, Bench& bench, std::int64_t n) {
  const Tensor a = random_tensor(backend, n, n);
  const Tensor b = random_tensor(backend, n, n);
  Tensor c(backend, DType::kF32, n, n);
  const double product =
      bench.seconds([&] { backend.matmul({.a = a.view(), .b = b.view(), .c = c.view()}); });
  const double copy = bench.seconds([&] { backend.copy(a.view(), c.view()); });
  bench.set_flop_rate(2 * real(n) * real(n) * real(n) / product);
  bench.set_byte_rate(2 * bytes_of(c) / copy);
  bench.print_flops(shape("matmul", n, n, n), product, 2 * real(n) * real(n) * real(n));
  bench.print_bytes(shape("copy", n, n), copy, 2 * bytes_of(c));
}

void time_linear(Backend& backend, Bench& bench, std::int64_t tokens, std::int64_t in,
                 std::int64_t out) {
  const Tensor x = random_tensor(backend, tokens, in);
  const Tensor w = random_tensor(backend, out, in);
  Tensor y(backend, DType::kF32, tokens, out);
  const double time = bench.seconds(
      [&] { backend.linear({.x = x.view(), .w = w.view(), .bias = {}, .y = y.view()}); });
  bench.print_flops(shape("linear", tokens, in, out), time,
                    2 * real(tokens) * real(in) * real(out));
}

void time_hessian(Backend& backend, Bench& bench, std::int64_t tokens, std::int64_t n) {
  const Tensor x = random_tensor(backend, tokens, n);
  Tensor h(backend, DType::kF32, n, n);
  Tensor work(backend, DType::kF32, n, n);
  backend.zero(h.view());
  const double cube = real(n) * real(n) * real(n);
  bench.print_flops(shape("gram", tokens, n),
                    bench.seconds([&] { backend.gram({.x = x.view(), .h = h.view()}); }),
                    real(tokens) * real(n) * real(n));

  // Fewer tokens than columns make a singular matrix: damp it as GPTQ does.
  std::vector<float> diagonal(static_cast<std::size_t>(n * n), 0.0f);
  for (std::int64_t i = 0; i < n; ++i) {
    diagonal[static_cast<std::size_t>(i * n + i)] = static_cast<float>(tokens);
  }
  backend.upload(std::as_bytes(std::span(diagonal)), work.view().data);
  backend.add(work.view(), h.view());
  bench.print_flops(
      shape("cholesky", n, n),
      bench.seconds(
          [&] { backend.copy(h.view(), work.view()); },
          [&] { require(backend.cholesky({.a = work.view()}), "not positive definite"); }),
      cube / 3);
  Tensor inverse(backend, DType::kF32, n, n);
  bench.print_flops(shape("triangular_inverse", n, n),
                    bench.seconds([&] { backend.copy(work.view(), inverse.view()); },
                                  [&] { backend.triangular_inverse({.l = inverse.view()}); }),
                    cube / 3);
  bench.print_bytes(shape("symmetrize", n, n), bench.seconds([&] { backend.symmetrize(h.view()); }),
                    bytes_of(h));
  bench.print_bytes(shape("reverse", n, n),
                    bench.seconds([&] { backend.reverse(h.view(), work.view()); }),
                    2 * bytes_of(h));
  bench.print_bytes(shape("add", n, n),
                    bench.seconds([&] { backend.add(h.view(), inverse.view()); }), 3 * bytes_of(h));
}

void time_transformer(Backend& backend, Bench& bench, const Shapes& s) {
  const Tensor x = random_tensor(backend, s.tokens, s.hidden);
  const Tensor weight = random_tensor(backend, 1, s.hidden);
  Tensor y(backend, DType::kF32, s.tokens, s.hidden);
  const std::int64_t heads = s.hidden / kHeadDim;
  for (const std::int64_t kv_heads : {heads, heads / 4}) {
    const Tensor kv = random_tensor(backend, s.tokens, kv_heads * kHeadDim);
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
                         .scale = 0.125f});
    });
    bench.print_flops(shape("attention (causal half), heads / kv heads", heads, kv_heads), time,
                      2 * real(s.tokens) * real(s.tokens) * real(s.hidden));
  }
  bench.print_bytes(shape("rms_norm", s.tokens, s.hidden), bench.seconds([&] {
    backend.rms_norm({.x = x.view(), .weight = weight.view(), .y = y.view(), .epsilon = 1e-5f});
  }),
                    2 * bytes_of(y));
  const Tensor table = random_tensor(backend, s.tokens, kHeadDim / 2, 0.5);
  bench.print_bytes(shape("rope", s.tokens, s.hidden), bench.seconds([&] {
    backend.rope({.x = y.view(),
                  .cos = table.view(),
                  .sin = table.view(),
                  .heads = heads,
                  .head_dim = kHeadDim,
                  .length = s.tokens});
  }),
                    2 * bytes_of(y));
  const Tensor gate = random_tensor(backend, s.tokens, s.inner);
  Tensor gated(backend, DType::kF32, s.tokens, s.inner);
  bench.print_bytes(shape("silu_gate", s.tokens, s.inner), bench.seconds([&] {
    backend.silu_gate({.gate = gate.view(), .up = gate.view(), .y = gated.view()});
  }),
                    2 * bytes_of(gated));
  const Tensor logits = random_tensor(backend, s.tokens / 4, s.vocabulary);
  const std::vector<std::int32_t> target(static_cast<std::size_t>(s.tokens / 4), 1);
  std::vector<float> loss(target.size());
  bench.print_bytes(shape("cross_entropy", s.tokens / 4, s.vocabulary), bench.seconds([&] {
    backend.cross_entropy({.logits = logits.view(), .target = target, .loss = loss});
  }),
                    bytes_of(logits));
  std::vector<std::uint8_t> finite(4);
  bench.print_bytes(shape("check_finite", s.tokens, s.inner), bench.seconds([&] {
    backend.check_finite({.x = gate.view(), .rows_each = s.tokens / 4, .finite = finite});
  }),
                    bytes_of(gate));
}

void time_quantization(Backend& backend, Bench& bench, const Shapes& s) {
  const std::int64_t groups = (s.hidden + kGroup - 1) / kGroup;
  const Tensor w = random_tensor(backend, s.inner, s.hidden, 0.02);
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
  bench.print_bytes(shape("find_grid, 80 clip steps", s.inner, s.hidden),
                    bench.seconds([&] { backend.find_grid(find); }), bytes_of(w));
  find.clip.steps = 0;
  bench.print_bytes(shape("find_grid", s.inner, s.hidden),
                    bench.seconds([&] { backend.find_grid(find); }), bytes_of(w));
  bench.print_bytes(shape("round_to_grid", s.inner, s.hidden), bench.seconds([&] {
    backend.round_to_grid({.w = w.view(),
                           .group_size = kGroup,
                           .bits = 4,
                           .scales = scales.view(),
                           .zeros = zeros.view(),
                           .codes = codes.view()});
  }),
                    bytes_of(w) + bytes_of(codes));
  bench.print_bytes(shape("dequantize", s.inner, s.hidden), bench.seconds([&] {
    backend.dequantize({.codes = codes.view(),
                        .group_size = kGroup,
                        .scales = scales.view(),
                        .zeros = zeros.view(),
                        .group_of_column = {},
                        .w = values.view()});
  }),
                    bytes_of(w) + bytes_of(codes));

  Tensor u(backend, DType::kF32, kGroup, kGroup);  // upper triangle: 1 and small numbers beside it
  std::vector<float> host(static_cast<std::size_t>(kGroup * kGroup), 0.0f);
  for (std::int64_t i = 0; i < kGroup; ++i) {
    for (std::int64_t j = i; j < kGroup; ++j) {
      host[static_cast<std::size_t>(i * kGroup + j)] =
          i == j ? 1.0f : 0.01f * static_cast<float>((i * 7 + j * 3) % 11 - 5);
    }
  }
  backend.upload(std::as_bytes(std::span(host)), u.view().data);
  Tensor column_scales = random_tensor(backend, s.inner, kGroup, 0.0);
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
  bench.print_flops(shape("gptq_panel", s.inner, kGroup),
                    bench.seconds([&] { backend.copy(w.view(), values.view()); }, panel),
                    real(s.inner) * real(kGroup) * real(kGroup));
}

void time_all(Backend& backend, const Shapes& s) {
  Bench bench(backend);
  std::printf("%s\n", backend.description().c_str());
  measure_machine(backend, bench, s.square);
  time_linear(backend, bench, s.tokens, s.hidden, s.inner);
  time_linear(backend, bench, s.tokens, s.inner, s.hidden);
  time_linear(backend, bench, s.tokens, s.hidden, s.hidden / 8);
  time_hessian(backend, bench, s.tokens, s.hidden);
  time_hessian(backend, bench, s.tokens, s.inner);
  time_transformer(backend, bench, s);
  time_quantization(backend, bench, s);
}

}  // namespace
}  // namespace roundhouse

int main(int argc, char** argv) {
  using namespace roundhouse;
  const std::string name = argc > 1 ? argv[1] : "cpu";
  const int threads = argc > 2 ? std::atoi(argv[2]) : 0;
  const bool small = argc > 3 && std::string(argv[3]) == "small";
  try {
    const auto backend = make_backend(name, {.threads = threads});
    check_against_reference(*backend);
    time_all(*backend,
             small ? Shapes{128, 256, 704, 1000, 512} : Shapes{2048, 2048, 5632, 32000, 4096});
  } catch (const Error& e) {
    std::fprintf(stderr, "%s\n", e.what());
    return 1;
  }
}
