#include "pipeline/watch/time_left.h"

#include <algorithm>

#include <fmt/format.h>

#include "pipeline/json_values.h"

namespace roundhouse {
namespace {

// In place of reading, rounding, packing and writing a weight, which are bound by memory and disks: about what as many
// operations of matrix products take.
constexpr double kFlopsPerWeight = 1000;
// Sorting and clustering one takes so much longer.
constexpr double kFlopsPerClusteredWeight = 50 * kFlopsPerWeight;
// Matrix products in F32 are slower on a device by about this.
constexpr double kF32OnDevice = 10;

double weights_of(const DecoderBlock& decoder) {
  double weights = 0;
  for (const LinearSpec& linear : decoder.linears())
    weights += static_cast<double>(linear.rows) * static_cast<double>(linear.cols);
  return weights;
}

}  // namespace

std::string kind_of(const nlohmann::json& event) {
  const std::string kind = text_in(event, "event");
  if (kind == "block")
    return (event.contains("outside") ? "outside " : "block ") + text_in(event, "recipe");
  if (kind == "export") return kind + " " + text_in(event, "format");
  if (kind == "perplexity" || kind == "task") return kind + " " + text_in(event, "name");
  if (kind == "statistics") return kind + " " + text_in(event, "recipe");
  if (kind == "gradients_forward" || kind == "gradients_block") {
    return fmt::format("gradients {}x{}{}", integer_in(event, "samples", 0),
                       integer_in(event, "length", 0),
                       kind == "gradients_forward" ? " forward" : "");
  }
  return "";
}

TimeLeft::TimeLeft(const nlohmann::json& plan) {
  if (!plan.is_object()) return;
  for (const auto& [kind, work] : plan.items()) {
    works_[kind] = {.cost = number_in(work, "cost"), .left = integer_in(work, "left", 0)};
  }
}

void TimeLeft::finished(const nlohmann::json& event) {
  if (text_in(event, "event") == "recipe_failed") {
    // Nothing more is made of it.
    for (auto& [kind, work] : works_) {
      const std::string recipe = text_in(event, "recipe");
      if (kind == "block " + recipe || kind == "outside " + recipe) {
        work.left = 0;
      } else if (!kind.starts_with("block ") && !kind.starts_with("outside ") &&
                 !kind.starts_with("gradients ")) {
        work.left = std::max(0, work.left - 1);
      }
    }
    return;
  }
  const auto found = works_.find(kind_of(event));
  if (found == works_.end()) return;
  Work& work = found->second;
  work.left = std::max(0, work.left - 1);
  ++work.done;
  work.rank_seconds += number_in(event, "seconds") * std::max(1, integer_in(event, "ranks", 1));
}

std::optional<double> TimeLeft::seconds(double elapsed) const {
  double spent = 0, cost = 0;  // of what is done
  for (const auto& [kind, work] : works_) {
    spent += work.rank_seconds;
    cost += work.cost * work.done;
  }
  if (spent <= 0) return std::nullopt;
  double left = 0;
  for (const auto& [kind, work] : works_) {
    const double each = work.done > 0 ? work.rank_seconds / work.done
                        : cost > 0    ? work.cost * spent / cost
                                      : 0;
    left += each * work.left;
  }
  // By the clock: as many ranks at work, and as much waiting, as until now.
  return left * elapsed / spent;
}

double block_cost(const Method& method, const DecoderBlock& decoder, const SampleOptions& samples,
                  bool on_device) {
  const BlockCost cost = method.cost(decoder, samples.samples, samples.sequence_length,
                                     on_device ? DType::kBF16 : DType::kF32);
  double flops = kFlopsPerWeight * weights_of(decoder) + kFlopsPerClusteredWeight * cost.clustered;
  for (const auto& [phase, count] : cost.flops) {
    flops += count * (on_device && works_in_f32(phase) ? kF32OnDevice : 1);
  }
  return flops;
}

double forward_cost(const DecoderBlock& decoder, const SampleOptions& samples) {
  return 2 * weights_of(decoder) * samples.samples * samples.sequence_length;
}

double gradient_forward_cost(const DecoderBlock& decoder, int samples, int length) {
  return forward_cost(decoder, {.text = {}, .samples = samples, .sequence_length = length});
}

double gradient_cost(const DecoderBlock& decoder, int samples, int length) {
  const BlockSizes sizes{decoder, static_cast<double>(samples) * length,
                         static_cast<double>(length)};
  double flops = 0;
  for (const auto& [phase, count] : gradient_cost(sizes, 1).flops) flops += count;
  return flops - gradient_forward_cost(decoder, samples, length);
}

double statistics_cost(const DecoderBlock& decoder) {
  // A grid, rounding and products in double for each of three widths: about what as many operations of matrix products take.
  return 6e4 * weights_of(decoder);
}

double export_cost(const ModelConfig& model, const DecoderBlock& decoder) {
  return kFlopsPerWeight * weights_of(decoder) * static_cast<double>(model.blocks);
}

double perplexity_cost(const ModelConfig& model, const DecoderBlock& decoder, double tokens,
                       std::size_t together) {
  const double weights = weights_of(decoder) * static_cast<double>(model.blocks);
  const double head = static_cast<double>(model.vocabulary * decoder.hidden_size());
  return 2 * tokens * (weights + head) + kFlopsPerWeight * weights / static_cast<double>(together);
}

}  // namespace roundhouse
