#include "model/causal_lm.h"

#include <algorithm>
#include <utility>

#include <fmt/format.h>

#include "base/error.h"
#include "model/checkpoint/load_weight.h"

namespace roundhouse {
namespace {

// Rows of a table in a file, as F32: row indices[i] becomes row i.
HostTensor gather_rows(const HostView& table, std::span<const std::int64_t> indices) {
  const std::int64_t cols = table.shape[1];
  const std::size_t row_bytes = static_cast<std::size_t>(cols) * size_of(table.type);
  HostTensor rows(DType::kF32, {std::ssize(indices), cols});
  for (std::size_t i = 0; i < indices.size(); ++i) {
    convert(table.type, table.bytes.data() + static_cast<std::size_t>(indices[i]) * row_bytes,
            DType::kF32, rows.as<float>().data() + i * static_cast<std::size_t>(cols),
            static_cast<std::size_t>(cols));
  }
  return rows;
}

Tensor upload_rows(const HostTensor& rows, Backend& backend) {
  Tensor tensor = Tensor::upload(backend, rows.view(), backend.activation_type());
  backend.sync();  // the rows may end now
  return tensor;
}

}  // namespace

CausalLM::CausalLM(const std::filesystem::path& directory)
    : config_(read_model_config(directory)),
      layout_(outer_layout(config_)),
      checkpoint_(directory) {
  unread_ = check_tensors(config_, checkpoint_);
}

Tensor CausalLM::embed(std::span<const std::int32_t> ids, std::int64_t length, Backend& backend,
                       const EmbeddingRows& embedding) const {
  require(length > 0 && std::ssize(ids) % length == 0, "ids are not whole sequences");
  const DType type = backend.activation_type();
  std::vector<std::int64_t> indices(ids.begin(), ids.end());
  for (const std::int64_t id : indices) {
    if (id < 0 || id >= config_.vocabulary) {
      throw Error(
          fmt::format("token id {} is outside the vocabulary of {}", id, config_.vocabulary));
    }
  }
  HostTensor rows;
  if (embedding) {
    rows = HostTensor(DType::kF32, {std::ssize(indices), config_.embedding_size});
    for (std::size_t i = 0; i < indices.size(); ++i) {
      const std::span<const float> values = embedding(indices[i]);
      std::ranges::copy(values, rows.as<float>().subspan(i * values.size()).begin());
    }
  } else {
    rows = gather_rows(
        checkpoint_.weight(layout_.embedding, {config_.vocabulary, config_.embedding_size}),
        indices);
    check_values(rows.view(), type, checkpoint_.where(layout_.embedding));
  }
  if (config_.embedding_multiplier != 1.0f) {
    for (float& value : rows.as<float>()) value *= config_.embedding_multiplier;
  }
  if (layout_.positions.empty()) return upload_rows(rows, backend);

  if (length > config_.max_positions) {
    throw Error(fmt::format("a sequence of {} tokens, but the model has only {} positions", length,
                            config_.max_positions));
  }
  for (std::size_t i = 0; i < indices.size(); ++i) {
    indices[i] = layout_.position_offset + static_cast<std::int64_t>(i) % length;
  }
  const HostTensor positions = gather_rows(
      checkpoint_.weight(layout_.positions,
                         {layout_.position_offset + config_.max_positions, config_.hidden_size}),
      indices);
  check_values(positions.view(), type, checkpoint_.where(layout_.positions));
  if (layout_.project_in.empty()) {
    const std::span<float> sum = rows.as<float>();
    for (std::size_t i = 0; i < sum.size(); ++i) sum[i] += positions.as<float>()[i];
    return upload_rows(rows, backend);
  }
  Tensor residual = upload_rows(positions, backend);
  const Tensor narrow = upload_rows(rows, backend);
  const Tensor projection = load_weight(checkpoint_, layout_.project_in,
                                        {config_.hidden_size, config_.embedding_size}, backend);
  backend.linear({.x = narrow.view(),
                  .w = projection.view(),
                  .bias = {},
                  .y = residual.view(),
                  .accumulate = true});
  return residual;
}

CausalLM::Head CausalLM::load_head(Backend& backend) const {
  Head head = load_head_norm(config_, checkpoint_, backend);
  head.weight =
      load_weight(checkpoint_, layout_.head, {config_.vocabulary, config_.embedding_size}, backend);
  backend.sync();
  return head;
}

void CausalLM::cap(Matrix logits, Backend& backend) const {
  if (config_.logit_cap == 0.0f) return;
  backend.soft_cap({.x = logits, .y = logits, .cap = config_.logit_cap});
}

Tensor CausalLM::logits(const Head& head, ConstMatrix residual, Backend& backend) const {
  const HeadInput input = head_input(config_, head, residual, backend);
  Tensor logits(backend, DType::kF32, residual.rows, config_.vocabulary);
  backend.linear({.x = input.x, .w = head.weight.view(), .bias = {}, .y = logits.view()});
  cap(logits.view(), backend);
  return logits;
}

}  // namespace roundhouse
