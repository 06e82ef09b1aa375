// Kernels as kernels/cuda/*.cu queue them; tests/cuda_emulation/counts_test.cpp compares the counts with theirs.
#include "tests/bench/reckoning/recording_backend.h"

#include <algorithm>

#include "base/error.h"

namespace roundhouse {
namespace {

constexpr std::size_t kDeviceBytes = std::size_t{139} << 30;
constexpr std::int64_t kGramTile = 2048;                      // kernels/cuda/linear_algebra.cu
constexpr std::int64_t kPanel = 128;                          // kernels/cuda/gptq.cu
constexpr std::int64_t kTrialBytes = std::int64_t{64} << 20;  // kernels/cuda/activation_aware.cu
constexpr std::int64_t kAttentionTile = 64;                   // of a tensor-core kernel's own rows

double bytes_of(const ConstMatrix& m) {
  return m.data == nullptr
             ? 0
             : static_cast<double>(m.rows * m.cols) * static_cast<double>(size_of(m.type));
}
double bytes_of(std::initializer_list<ConstMatrix> matrices) {
  double sum = 0;
  for (const ConstMatrix& m : matrices) sum += bytes_of(m);
  return sum;
}
bool is_empty(const ConstMatrix& m) { return m.rows == 0 || m.cols == 0; }

Engine engine_of(DType type) { return type == DType::kF32 ? Engine::kF32 : Engine::kBf16; }
std::string text_of(DType type) { return std::string(name_of(type)); }
std::string size_text(std::int64_t rows, std::int64_t cols) {
  return std::to_string(rows) + " x " + std::to_string(cols);
}

// Blocks of a causal attention kernel, the longest of which has twice the average's work: in less than one wave all wait for it.
double share_of_device(double blocks, double slots) {
  return blocks <= slots ? blocks / slots / 2 : 1;
}

}  // namespace

Buffer RecordingBackend::allocate(std::size_t bytes) {
  constexpr std::size_t kAlignment = 256;
  auto* const address = reinterpret_cast<std::byte*>(next_);  // NOLINT: never read or written
  next_ += (std::max<std::size_t>(bytes, 1) + kAlignment - 1) / kAlignment * kAlignment;
  in_use_ += bytes;
  peak_ = std::max(peak_, in_use_);
  return {address, [this, bytes](std::byte*) { in_use_ -= bytes; }};
}

std::size_t RecordingBackend::available_bytes() const {
  return kDeviceBytes - std::min(kDeviceBytes, in_use_);
}

void RecordingBackend::upload(std::span<const std::byte> from, void*) {
  timeline_.upload(std::ssize(from));
}

void RecordingBackend::download(const void*, std::span<std::byte> to) {
  timeline_.download(std::ssize(to));
  std::ranges::fill(to, std::byte{0});
}

Memory::UploadTicket RecordingBackend::upload_ahead(std::span<const std::byte> from, void*) {
  tickets_.push_back(timeline_.upload_ahead(std::ssize(from)));
  return tickets_.size() - 1;
}

void RecordingBackend::await_upload(UploadTicket ticket) {
  timeline_.await_upload(tickets_.at(ticket));
}

void RecordingBackend::download_behind(const void*, std::span<std::byte> to) {
  timeline_.download_behind(std::ssize(to));
}

void RecordingBackend::copy(ConstMatrix from, Matrix to) {
  if (is_empty(from)) return;
  if (from.type == to.type) {
    timeline_.fill(bytes_of(from), 2);
  } else {
    pass("convert", {from}, {to});
  }
}

void RecordingBackend::zero(Matrix m) {
  if (!is_empty(m)) timeline_.fill(bytes_of(m), 1);
}

void RecordingBackend::pass(const char* name, std::initializer_list<ConstMatrix> read,
                            std::initializer_list<ConstMatrix> written, int kernels) {
  for (const ConstMatrix& m : written) {
    if (is_empty(m) && m.data != nullptr) return;  // an empty grid
  }
  timeline_.kernel(
      {.name = name, .read = bytes_of(read), .written = bytes_of(written), .kernels = kernels});
}

void RecordingBackend::multiply(const std::string& name, const Matmul& op) {
  if (is_empty(op.c)) return;
  const std::int64_t k = op.transpose_a ? op.a.rows : op.a.cols;
  timeline_.kernel({.name = name,
                    .engine = engine_of(op.a.type),
                    .flops = 2.0 * static_cast<double>(op.c.rows) * static_cast<double>(op.c.cols) *
                             static_cast<double>(k),
                    .read = bytes_of({op.a, op.b}),
                    .written = bytes_of(op.c) * (op.beta == 0 ? 1 : 2)});
}

void RecordingBackend::run(const Matmul& op) {
  const std::int64_t k = op.transpose_a ? op.a.rows : op.a.cols;
  if (k == 0) {
    if (op.beta == 0.0f)
      zero(op.c);
    else if (op.beta != 1.0f)
      run_scale(op.beta, op.c);
    return;
  }
  const bool whole = op.c.type == DType::kF32;
  multiply("product " + text_of(op.a.type) + (op.transpose_a ? " T" : " N") +
               (op.transpose_b ? "T" : "N") + (whole && op.a.type != DType::kF32 ? " to F32" : "") +
               (op.beta != 0 ? ", added" : ""),
           op);
}

void RecordingBackend::run(const Linear& op) {
  if (op.has_bias()) pass("bias", {op.bias}, {op.y});
  multiply("linear " + size_text(op.w.rows, op.w.cols),
           {.a = op.x,
            .b = op.w,
            .transpose_b = true,
            .c = op.y,
            .beta = op.has_bias() || op.accumulate ? 1.0f : 0.0f});
}

void RecordingBackend::run(const Gram& op) {
  const std::int64_t k = op.x.cols;
  if (op.x.rows == 0) return;
  const std::int64_t edge = std::min(kGramTile, k);
  Tensor aside(*this, DType::kF32, edge, edge);
  const std::string name = "gram of " + std::to_string(k);
  for (std::int64_t begin = 0; begin < k; begin += kGramTile) {
    const std::int64_t end = std::min(begin + kGramTile, k);
    const ConstMatrix x = op.x.col_range(begin, end);
    const Matrix diagonal = aside.view().row_range(0, end - begin).col_range(0, end - begin);
    multiply(name, {.a = x, .transpose_a = true, .b = x, .c = diagonal});
    pass("add the diagonal block", {diagonal, diagonal}, {diagonal});
    multiply(name, {.a = op.x.col_range(end, k),
                    .transpose_a = true,
                    .b = x,
                    .c = op.h.row_range(end, k).col_range(begin, end),
                    .beta = 1.0f});
  }
}

bool RecordingBackend::run(const Cholesky& op) {
  const auto n = static_cast<double>(op.a.rows);
  timeline_.kernel({.name = "Cholesky of " + std::to_string(op.a.rows),
                    .engine = Engine::kF32,
                    .flops = n * n * n / 3,
                    .written = bytes_of(op.a)});
  pass("clear the upper triangle", {}, {op.a});
  timeline_.download(sizeof(int));
  std::uint8_t finite = 0;
  check_finite({.x = op.a, .rows_each = op.a.rows, .finite = std::span(&finite, 1)});
  return true;
}

void RecordingBackend::run(const TriangularInverse& op) {
  const auto n = static_cast<double>(op.l.rows);
  timeline_.kernel({.name = "triangular inverse of " + std::to_string(op.l.rows),
                    .engine = Engine::kF32,
                    .flops = n * n * n / 3,
                    .written = bytes_of(op.l)});
  pass("clear the upper triangle", {}, {op.l});
  timeline_.download(sizeof(int));
}

void RecordingBackend::run_symmetrize(Matrix h) { pass("symmetrize", {h}, {h}); }
void RecordingBackend::run_reverse(ConstMatrix from, Matrix to) { pass("reverse", {from}, {to}); }
void RecordingBackend::run(const AddUp& op) {
  // What is not there has no bytes.
  const ConstMatrix before = op.accumulate ? ConstMatrix(op.into) : ConstMatrix();
  pass("add", {op.from[0], op.from[1], op.from[2], op.from[3], before}, {op.into});
}
void RecordingBackend::run_scale(float, Matrix m) { pass("scale", {m}, {m}); }
void RecordingBackend::run(const Gather& op) { pass("gather", {op.to}, {op.to}); }

void RecordingBackend::run(const RmsNorm& op) { pass("norm", {op.x}, {op.y}); }
void RecordingBackend::run(const LayerNorm& op) { pass("norm", {op.x}, {op.y}); }
void RecordingBackend::run(const Rope& op) { pass("rotate", {op.x}, {op.x}); }

void RecordingBackend::run(const Attention& op) {
  const auto tokens = static_cast<double>(op.q.rows), length = static_cast<double>(op.length);
  timeline_.kernel(
      {.name = "attention",
       .engine = Engine::kAttention,
       .flops = 2 * tokens * length * static_cast<double>(op.q.cols),  // two products, causal
       .read = bytes_of({op.q, op.k, op.v}),
       .written = bytes_of(op.out)});
}

void RecordingBackend::run(const GatedProduct& op) { pass("gate", {op.gate, op.up}, {op.y}); }
void RecordingBackend::run(const ScaledSum& op) {
  pass("scaled sum", {op.x, op.accumulate ? ConstMatrix(op.y) : ConstMatrix()}, {op.y});
}
void RecordingBackend::run(const SoftCap& op) { pass("soft cap", {op.x}, {op.y}); }
void RecordingBackend::run(const Relu& op) { pass("relu", {op.x}, {op.y}); }

void RecordingBackend::run(const CrossEntropy& op) {
  timeline_.upload(std::ssize(std::as_bytes(op.target)));
  pass("cross entropy", {op.logits}, {});
  timeline_.download(std::ssize(std::as_bytes(op.loss)));
  std::ranges::fill(op.loss, 0.0f);
  if (op.largest.empty()) return;
  timeline_.download(std::ssize(std::as_bytes(op.largest)));
  std::ranges::fill(op.largest, 0);
}

void RecordingBackend::run(const CompareLogits& op) {
  pass("compare logits", {op.reference, op.logits}, {});
  timeline_.download(std::ssize(std::as_bytes(op.divergences)));
  std::ranges::fill(op.divergences, Divergence());
}

void RecordingBackend::run(const CheckFinite& op) {
  timeline_.fill(static_cast<double>(op.finite.size()), 1);
  pass("check finite", {op.x}, {});
  timeline_.download(std::ssize(op.finite));
  std::ranges::fill(op.finite, std::uint8_t{1});
}

void RecordingBackend::run(const RmsNormBackward& op) {
  pass("norm, backward", {op.x, op.dy, op.accumulate ? ConstMatrix(op.dx) : ConstMatrix()},
       {op.dx});
}
void RecordingBackend::run(const LayerNormBackward& op) {
  pass("norm, backward", {op.x, op.dy, op.accumulate ? ConstMatrix(op.dx) : ConstMatrix()},
       {op.dx});
}

// Of queries three products, of keys and values four.
void RecordingBackend::run(const AttentionBackward& op) {
  const auto tokens = static_cast<double>(op.q.rows), length = static_cast<double>(op.length);
  const double product = tokens * length * static_cast<double>(op.q.cols);
  const double tiles = static_cast<double>((op.length + kAttentionTile - 1) / kAttentionTile) *
                       static_cast<double>(op.q.rows / op.length);
  const double slots = timeline_.rates().attention_slots;
  pass("row sums", {op.out, op.d_out}, {op.log_sum_exp});
  timeline_.kernel({.name = "attention, backward: dq",
                    .engine = Engine::kAttentionBackward,
                    .flops = 3 * product,
                    .read = bytes_of({op.q, op.k, op.v, op.d_out}),
                    .written = bytes_of(op.dq),
                    .share = share_of_device(tiles * static_cast<double>(op.heads), slots)});
  timeline_.kernel({.name = "attention, backward: dk, dv",
                    .engine = Engine::kAttentionBackward,
                    .flops = 4 * product,
                    .read = bytes_of({op.q, op.k, op.v, op.d_out}),
                    .written = bytes_of({op.dk, op.dv}),
                    .share = share_of_device(tiles * static_cast<double>(op.kv_heads), slots),
                    .kernels = op.head_dim > 128 ? 2 : 1});
}

void RecordingBackend::run(const GatedProductBackward& op) {
  pass("gate, backward", {op.gate, op.up, op.dy}, {op.d_gate, op.d_up});
}
void RecordingBackend::run(const ReluBackward& op) {
  pass("relu, backward", {op.y, op.dy}, {op.dx});
}

double RecordingBackend::run(const SquaredError& op) {
  pass("squared error", {op.y, op.target}, {op.dy});
  timeline_.download(op.y.rows * static_cast<std::int64_t>(sizeof(double)));
  const std::int64_t step = losses_++ / parts_of_step_;
  return step % kStepsToBetter == 0 ? 1.0 / static_cast<double>(step + 1) : 2.0;
}

void RecordingBackend::run(const LogSumExp& op) { pass("log sum exp", {op.x}, {op.sums}); }
void RecordingBackend::run(const CrossEntropyBackward& op) {
  pass("cross entropy, backward", {op.logits}, {op.d_logits});
}
void RecordingBackend::run(const AddGradient& op) {
  pass("add gradient", {op.gradient, op.sum, op.squares}, {op.sum, op.squares});
}

// A report of the first group without a grid, which the host waits for.
void RecordingBackend::find_bad_groups(const char* name, std::initializer_list<ConstMatrix> read,
                                       std::initializer_list<ConstMatrix> written) {
  timeline_.fill(sizeof(std::uint64_t), 1);
  pass(name, read, written);
  timeline_.download(sizeof(std::uint64_t));
}

void RecordingBackend::run(const FindGrid& op) {
  find_bad_groups("find grids", {op.w}, {op.scales, op.zeros});
}
void RecordingBackend::run(const RoundToGrid& op) { pass("round to grid", {op.w}, {op.codes}); }
void RecordingBackend::run(const Dequantize& op) {
  if (op.gathered()) timeline_.download(op.group_of_column.cols * 4);
  pass("dequantize", {op.codes}, {op.w});
}

void RecordingBackend::run(const GptqPanel& op) {
  for (std::int64_t begin = 0; begin < op.w.cols; begin += kPanel) {
    const std::int64_t end = std::min(begin + kPanel, op.w.cols);
    timeline_.kernel(
        {.name = "GPTQ panel",
         .read = bytes_of(op.w.col_range(begin, end)) * 2.25,
         .written = bytes_of(op.w.col_range(begin, end)) * 1.25,
         .least_seconds = static_cast<double>(end - begin) * timeline_.rates().column_seconds});
    require(end == op.w.cols, "a panel wider than the kernel's is not reckoned");
  }
}
void RecordingBackend::run(const RowErrors& op) { pass("row errors", {op.w, op.value}, {op.sums}); }

void RecordingBackend::run(const ColumnMagnitudes& op) { pass("column sums", {op.x}, {op.sums}); }
void RecordingBackend::run(const CompareRows& op) { pass("compare rows", {op.a, op.b}, {op.sums}); }
void RecordingBackend::run(const ScaledRounding& op) { pass("scaled rounding", {op.w}, {op.out}); }
void RecordingBackend::run(const FoldScales& op) { pass("fold", {op.w}, {op.w}); }

void RecordingBackend::run(const GroupGrams& op) {
  for (std::int64_t first = 0; first < op.x.cols; first += op.group_size) {
    const std::int64_t end = std::min(first + op.group_size, op.x.cols);
    const ConstMatrix x = op.x.col_range(first, end);
    multiply("grams of groups", {.a = x,
                                 .transpose_a = true,
                                 .b = x,
                                 .c = op.grams.row_range(first, end).col_range(0, end - first),
                                 .beta = 1.0f});
  }
}

void RecordingBackend::run(const ClipGroups& op) {
  const std::int64_t rows = op.w.rows, cols = op.w.cols;
  const std::int64_t row_bytes = std::min(op.group_size, cols) * op.candidates * 4;
  const std::int64_t together = std::clamp<std::int64_t>(kTrialBytes / row_bytes, 1, rows);
  const Buffer room = allocate(static_cast<std::size_t>(2 * together * row_bytes));
  for (std::int64_t first = 0; first < cols; first += op.group_size) {
    const std::int64_t n = std::min(op.group_size, cols - first);
    for (std::int64_t begin = 0; begin < rows; begin += together) {
      const std::int64_t trials = (std::min(begin + together, rows) - begin) * op.candidates;
      const Matrix all{room.get(), DType::kF32, trials, n, n};
      const Matrix w =
          op.w.row_range(begin, std::min(begin + together, rows)).col_range(first, first + n);
      pass("clip: candidates", {w}, {all});
      multiply("clip: products",
               {.a = all, .b = op.grams.row_range(first, first + n).col_range(0, n), .c = all});
      pass("clip: choice", {all, all}, {w});
    }
  }
}

void RecordingBackend::run(const FindRanges& op) {
  find_bad_groups("find ranges", {op.w}, {op.lo, op.hi});
}
void RecordingBackend::run(const RoundLearned& op) {
  pass("round, learned", {op.rounding.w, op.rounding.v}, {op.values, op.codes});
}
void RecordingBackend::run(const LearnRounding& op) {
  pass("learn", {op.rounding.w, op.rounding.v, op.gradient}, {op.rounding.v});
}

namespace {
[[noreturn]] void refuse(const char* what) { throw Error(std::string(what) + " is not reckoned"); }
}  // namespace
void RecordingBackend::run(const ClusterRows&) { refuse("clustering"); }
void RecordingBackend::run(const DequantizeTable&) { refuse("a table's values"); }
void RecordingBackend::run(const RoundingProducts&) { refuse("the error of widths"); }
void RecordingBackend::run(const CountKeys&) { refuse("a selection"); }
void RecordingBackend::run(const CountLarge&) { refuse("a count of weights"); }
void RecordingBackend::run(const RemoveOutliers&) { refuse("a sparse part"); }
void RecordingBackend::run(const PackCodes&) { refuse("packing"); }
void RecordingBackend::run(const UniformProduct&) { refuse("a product of packed weights"); }
void RecordingBackend::run(const TableProduct&) { refuse("a product of packed weights"); }

}  // namespace roundhouse
