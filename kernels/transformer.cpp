// Operands are checked here, once for every device.
#include "kernels/transformer.h"

#include <algorithm>

#include "kernels/operands.h"

namespace roundhouse {

void TransformerKernels::rms_norm(const RmsNorm& op) {
  require(alike(op.y, op.x), "rms_norm: y has another shape or type");
  require(has_shape(op.weight, 1, op.x.cols, op.x.type),
          "rms_norm: weight has another shape or type");
  run(op);
}

void TransformerKernels::layer_norm(const LayerNorm& op) {
  require(alike(op.y, op.x), "layer_norm: y has another shape or type");
  require(has_shape(op.weight, 1, op.x.cols, op.x.type),
          "layer_norm: weight has another shape or type");
  require(has_shape(op.bias, 1, op.x.cols, op.x.type),
          "layer_norm: bias has another shape or type");
  run(op);
}

void TransformerKernels::rope(const Rope& op) {
  require(op.x.cols == op.heads * op.head_dim, "rope: x has another shape");
  require(2 * op.cos.cols <= op.head_dim, "rope: more columns are rotated than a head has");
  require(op.length > 0 && op.x.rows % op.length == 0, "rope: x is not whole sequences");
  for (const ConstMatrix& table : {op.cos, op.sin}) {
    require(table.rows >= op.length && table.cols == op.cos.cols && table.type == DType::kF32,
            "rope: the tables have another shape or type");
  }
  run(op);
}

void TransformerKernels::attention(const Attention& op) {
  const std::int64_t tokens = op.q.rows;
  require(op.length > 0 && tokens % op.length == 0, "attention: q is not whole sequences");
  require(op.kv_heads > 0 && op.heads % op.kv_heads == 0,
          "attention: heads are no multiple of kv_heads");
  require(op.q.cols == op.heads * op.head_dim && alike(op.out, op.q),
          "attention: q or out have another shape or type");
  for (const ConstMatrix& m : {op.k, op.v}) {
    require(has_shape(m, tokens, op.kv_heads * op.head_dim, op.q.type),
            "attention: k or v have another shape or type");
  }
  require(op.scale > 0.0f, "attention: the scale is not positive");
  require(op.score_cap >= 0.0f, "attention: the cap is negative");
  require(
      op.log_sum_exp.data == nullptr || has_shape(op.log_sum_exp, tokens, op.heads, DType::kF32),
      "attention: log_sum_exp has another shape or type");
  run(op);
}

void TransformerKernels::gated_product(const GatedProduct& op) {
  require(alike(op.up, op.gate) && alike(op.y, op.gate), "gated_product: shapes or types differ");
  run(op);
}

void TransformerKernels::scaled_sum(const ScaledSum& op) {
  require(alike(op.y, op.x), "scaled_sum: y has another shape or type");
  run(op);
}

void TransformerKernels::soft_cap(const SoftCap& op) {
  require(op.x.type == DType::kF32 && alike(op.y, op.x),
          "soft_cap: x is F32, y of its shape and type");
  require(op.cap > 0.0f, "soft_cap: the cap is not positive");
  run(op);
}

void TransformerKernels::relu(const Relu& op) {
  require(alike(op.y, op.x), "relu: y has another shape or type");
  run(op);
}

void TransformerKernels::cross_entropy(const CrossEntropy& op) {
  require(std::ssize(op.target) == op.logits.rows && std::ssize(op.loss) == op.logits.rows,
          "cross_entropy: one target and one loss a row");
  require(std::ranges::all_of(op.target, [&](std::int32_t t) { return t < op.logits.cols; }),
          "cross_entropy: a target outside the vocabulary");
  require(op.largest.empty() || std::ssize(op.largest) == op.logits.rows,
          "cross_entropy: one largest column a row");
  run(op);
}

void TransformerKernels::compare_logits(const CompareLogits& op) {
  require(op.reference.type == DType::kF32 && op.reference.cols > 0,
          "compare_logits: logits are F32, of a vocabulary that is not empty");
  require(alike(op.logits, op.reference), "compare_logits: both have one shape and type");
  require(std::ssize(op.divergences) == op.logits.rows, "compare_logits: one divergence a row");
  run(op);
}

void TransformerKernels::check_finite(const CheckFinite& op) {
  require(op.rows_each > 0 && op.x.rows == op.rows_each * std::ssize(op.finite),
          "check_finite: the rows are not whole samples");
  run(op);
}

}  // namespace roundhouse
