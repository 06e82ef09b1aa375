// Operands are checked here, once for every device.
#include "kernels/gradients.h"

#include "kernels/operands.h"

namespace roundhouse {
namespace {

template <class NormBackward>
void check_norm(const NormBackward& op) {
  require(alike(op.dy, op.x) && alike(op.dx, op.x),
          "a norm's backward pass: dy or dx has another shape or type");
  require(has_shape(op.weight, 1, op.x.cols, op.x.type),
          "a norm's backward pass: weight has another shape or type");
}

}  // namespace

void GradientKernels::rms_norm_backward(const RmsNormBackward& op) {
  check_norm(op);
  run(op);
}

void GradientKernels::layer_norm_backward(const LayerNormBackward& op) {
  check_norm(op);
  run(op);
}

void GradientKernels::attention_backward(const AttentionBackward& op) {
  const std::int64_t tokens = op.q.rows;
  require(op.length > 0 && tokens % op.length == 0, "attention_backward: q is not whole sequences");
  require(op.kv_heads > 0 && op.heads % op.kv_heads == 0,
          "attention_backward: heads are no multiple of kv_heads");
  for (const ConstMatrix& m : {op.q, op.out, op.d_out, ConstMatrix(op.dq)}) {
    require(has_shape(m, tokens, op.heads * op.head_dim, op.q.type),
            "attention_backward: q, out or a gradient of theirs has another shape or type");
  }
  for (const ConstMatrix& m : {op.k, op.v, ConstMatrix(op.dk), ConstMatrix(op.dv)}) {
    require(has_shape(m, tokens, op.kv_heads * op.head_dim, op.q.type),
            "attention_backward: k, v or a gradient of theirs has another shape or type");
  }
  require(has_shape(op.log_sum_exp, tokens, op.heads, DType::kF32),
          "attention_backward: log_sum_exp has another shape or type");
  require(op.score_cap >= 0.0f, "attention_backward: the cap is negative");
  run(op);
}

void GradientKernels::gated_product_backward(const GatedProductBackward& op) {
  for (const ConstMatrix& m : {op.up, op.dy, ConstMatrix(op.d_gate), ConstMatrix(op.d_up)}) {
    require(alike(m, op.gate), "gated_product_backward: shapes or types differ");
  }
  require(op.d_gate.data != op.d_up.data || op.gate.rows == 0,
          "gated_product_backward: two results in one place");
  run(op);
}

void GradientKernels::relu_backward(const ReluBackward& op) {
  require(alike(op.dy, op.y) && alike(op.dx, op.y), "relu_backward: shapes or types differ");
  run(op);
}

double GradientKernels::squared_error(const SquaredError& op) {
  require(alike(op.target, op.y) && alike(op.dy, op.y), "squared_error: shapes or types differ");
  return run(op);
}

void GradientKernels::log_sum_exp(const LogSumExp& op) {
  require(op.x.type == DType::kF32 && op.x.cols > 0, "log_sum_exp: x is F32 and has columns");
  require(has_shape(op.sums, op.x.rows, 1, DType::kF32),
          "log_sum_exp: sums has another shape or type");
  run(op);
}

void GradientKernels::cross_entropy_backward(const CrossEntropyBackward& op) {
  const std::int64_t rows = op.logits.rows;
  require(op.logits.type == DType::kF32 && same_shape(op.d_logits, op.logits),
          "cross_entropy_backward: logits are F32, d_logits of their shape");
  require(has_shape(op.log_sum_exp, rows, 1, DType::kF32) &&
              has_shape(op.loss, rows, 1, DType::kF32) &&
              has_shape(op.target, 1, rows, DType::kI32),
          "cross_entropy_backward: log_sum_exp, loss or target has another shape or type");
  run(op);
}

void GradientKernels::add_gradient(const AddGradient& op) {
  require(op.gradient.type == DType::kF32, "add_gradient: matrices are F32");
  for (const Matrix& to : {op.sum, op.squares}) {
    require(to.data == nullptr || alike(to, op.gradient),
            "add_gradient: a sum has another shape or type");
  }
  run(op);
}

}  // namespace roundhouse
