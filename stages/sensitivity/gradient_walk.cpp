#include "stages/sensitivity/gradient_walk.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include <fmt/format.h>

#include "base/error.h"
#include "model/checkpoint/weight_prefetch.h"
#include "stages/flow/load_shared.h"
#include "stages/flow/micro_batch.h"
#include "stages/flow/phase_clock.h"
#include "stages/flow/shard_sum.h"

namespace roundhouse {
namespace {

class Walk {
 public:
  explicit Walk(const GradientWalk& walk)
      : w_(walk),
        shards_(parts_of_rank(walk.samples.shards(), walk.team.rank(), walk.team.size())),
        prefetch_(walk.model.checkpoint()),
        clock_(walk.backend) {
    require(w_.blocks.begin < w_.blocks.end, "a walk through no block");
    require(ends_with_loss() == (w_.blocks.end == w_.model.config().blocks),
            "the gradient begins where the model ends, or is received");
    const Samples& samples = w_.samples;
    const std::size_t saved = w_.decoder.saved_bytes(samples.micro_batch() * samples.length(),
                                                     w_.backend.activation_type());
    save_ = saved <= w_.saved_activation_bytes ? Save::kAll : Save::kInputs;
  }

  bool run() {
    forward();
    bool finished = true;
    for (int block = w_.blocks.end - 1; finished && block >= back_to(); --block) {
      if (block + 1 < w_.blocks.end) load(block);
      if (block > back_to()) prefetch(block - 1);
      finished = backward(block);
    }
    if (w_.ends.finish) w_.ends.finish();
    tell();
    return finished;
  }

 private:
  bool ends_with_loss() const { return !w_.ends.receive_gradient; }
  // The block with which the way back ends.
  int back_to() const { return std::max(w_.blocks.begin, w_.first_wanted); }
  bool output_wanted() const { return ends_with_loss() || w_.ends.send_output; }

  BlockSite site(int block) const {
    return {.backend = w_.backend,
            .team = w_.team,
            .device_team = w_.device_team,
            .decoder = w_.decoder,
            .block = block,
            .samples = &w_.samples,
            .monitor = w_.monitor};
  }
  void say(int block, const std::string& what) {
    w_.monitor.phase(fmt::format("gradients, block {}: {}", block, what));
  }
  void load(int block) {
    clock_.measure("load", [&] {
      weights_ = {};  // before the next ones
      weights_ = load_shared(w_.model.checkpoint(), site(block));
    });
  }
  void prefetch(int block) {
    prefetch_.start(w_.decoder, block, part_read_by_rank(w_.team, w_.backend));
  }
  std::unique_ptr<Activations> make_activations() {
    return std::make_unique<Activations>(w_.budget, w_.backend.activation_type(),
                                         w_.decoder.hidden_size());
  }
  void reserve(Activations& activations, int shard) {
    const PartRange range = w_.samples.samples_of_shard(shard);
    activations.reserve(shard, (range.end - range.begin) * w_.samples.length());
  }
  template <class Visit>
  void for_each_batch(int shard, std::vector<const Activations*> from, Visit visit) {
    BatchReader reader(micro_batches_of_shard(w_.samples, shard), std::move(from), w_.backend);
    while (!reader.at_end()) {
      const MicroBatch batch = reader.batch();
      visit(batch, reader.next());
      w_.monitor.tick();
    }
    w_.backend.finish_downloads();
  }

  void bring_input(int shard, Activations& into) {
    if (w_.ends.receive_input) {
      wait_for_others([&] { w_.ends.receive_input(shard, into); });
    } else {
      clock_.measure("input", [&] {
        embed_shard(w_.model, w_.samples, shard, {&into}, w_.backend, w_.monitor);
      });
    }
  }

  void run_shard_forward(int shard, const Activations& input, Activations& output) {
    for_each_batch(shard, {&input}, [&](const MicroBatch& batch, std::vector<Tensor> rows) {
      BlockState state = state_of(batch, std::move(rows.front()));
      w_.decoder.forward(weights_, state, w_.backend);
      output.store_behind(shard, batch.first_row, std::as_const(state.residual).view(), w_.backend);
    });
  }

  // Leaves the inputs of all blocks, the output of the last one where it is wanted, and its weights.
  void forward() {
    inputs_.push_back(make_activations());
    for (int block = w_.blocks.begin; block < w_.blocks.end; ++block) {
      say(block, "forward");
      const Timer timer(*this);
      const bool first = block == w_.blocks.begin, last = block + 1 == w_.blocks.end;
      load(block);
      if (!last) prefetch(block + 1);
      Activations& input = *inputs_.back();
      std::unique_ptr<Activations> output = make_activations();
      for (int shard = shards_.begin; shard < shards_.end; ++shard) {
        if (first) {
          reserve(input, shard);
          bring_input(shard, input);
        }
        reserve(*output, shard);
        if (last && !output_wanted()) continue;
        clock_.measure("forward", [&] { run_shard_forward(shard, input, *output); });
        if (last && w_.ends.send_output) w_.ends.send_output(shard, *output);
      }
      if (!last || output_wanted()) {
        clock_.count("forward", 2.0 * tokens() * weights_of_block());
      }
      tell_block("gradients_forward", block, timer.seconds());
      if (last) {
        gradient_ = std::move(output);
      } else {
        inputs_.push_back(std::move(output));
      }
    }
  }

  // From the output of the last block to the gradient of the loss, in place. Returns the sum of the shard's losses that are finite, and
  // how many they are: what is not finite is left out of sums (BlockGradients).
  std::vector<double> differentiate_loss(int shard, const CausalLM::Head& head) {
    double sum = 0.0, finite = 0.0;
    for_each_batch(
        shard, {gradient_.get()}, [&](const MicroBatch& batch, std::vector<Tensor> rows) {
          const ConstMatrix output = std::as_const(rows.front()).view();
          for (std::int64_t s = 0; s < batch.sequences; ++s) {
            const std::int64_t sample = batch.first_sample + s, row = s * batch.length;
            const CausalLM::LossGradient loss =
                w_.model.loss_gradient(head, output.row_range(row, row + batch.length),
                                       w_.samples.ids(sample, 1), w_.backend);
            if (std::isfinite(loss.loss)) {
              sum += loss.loss;
              ++finite;
            }
            gradient_->store_behind(shard, batch.first_row + row, loss.residual.view(), w_.backend);
          }
        });
    return {sum, finite};
  }

  void finish_losses(const BlockSite& at, std::vector<std::vector<double>> of_shards) {
    ShardNumberSum losses(at, 2);
    for (int shard = shards_.begin; shard < shards_.end; ++shard) {
      losses.add(shard, std::move(of_shards[shard - shards_.begin]));
    }
    const std::vector<double> sums = losses.finish();
    if (w_.team.rank() != 0) return;
    nlohmann::json event = {
        {"event", "loss"}, {"mean", sums[0] / sums[1]}, {"samples", w_.samples.count()}};
    const auto finite = static_cast<std::int64_t>(sums[1]);
    if (finite < w_.samples.count()) event["not_finite"] = w_.samples.count() - finite;
    w_.monitor.event(event);
  }

  // False: the gradient of the output does not come, or the walk is to end.
  bool backward(int block) {
    say(block, "backward");
    const bool from_end = block + 1 == w_.blocks.end, to_end = block == w_.blocks.begin;
    const bool from_loss = from_end && ends_with_loss();
    if (from_end && !from_loss && !gradient_comes()) return false;
    const Timer timer(*this);
    const bool input_wanted = block > back_to() || (to_end && w_.ends.send_gradient);
    const BlockSite here = site(block);
    Activations& input = *inputs_.back();
    std::optional<BlockGradients> gradients;
    if (!w_.summed || w_.summed(block)) gradients.emplace(here, w_.wanted);
    CausalLM::Head head;
    if (from_loss) head = w_.model.load_head(w_.backend);
    std::vector<std::vector<double>> losses;
    for (int shard = shards_.begin; shard < shards_.end; ++shard) {
      if (from_loss) {
        clock_.measure("loss", [&] { losses.push_back(differentiate_loss(shard, head)); });
      } else if (from_end && shard > shards_.begin) {
        require(receive_gradient(shard), "of a gradient some shards came, and others did not");
      }
      clock_.measure("backward", [&] {
        differentiate_block(shard, input, gradients ? &*gradients : nullptr, input_wanted);
      });
      input.release(shard);
      if (to_end && w_.ends.send_gradient) w_.ends.send_gradient(shard, *gradient_);
    }
    head = {};
    inputs_.pop_back();
    if (from_loss) finish_losses(here, std::move(losses));
    count(block, gradients.has_value(), input_wanted);
    tell_block("gradients_block", block, timer.seconds());
    if (gradients) {
      say(block, "sums");
      clock_.measure("take", [&] { w_.take(here, weights_, *gradients); });
    }
    return !w_.block_done || w_.block_done(block, input_wanted ? gradient_.get() : nullptr);
  }

  // The gradient of the output becomes that of the input, if it is wanted.
  void differentiate_block(int shard, const Activations& input, BlockGradients* gradients,
                           bool input_wanted) {
    if (gradients) gradients->begin_shard();
    const auto input_gradient =
        input_wanted ? DecoderBlock::InputGradient::kYes : DecoderBlock::InputGradient::kNo;
    for_each_batch(
        shard, {&input, gradient_.get()}, [&](const MicroBatch& batch, std::vector<Tensor> rows) {
          BlockState state = state_of(batch, std::move(rows[0]));
          SavedActivations saved = w_.decoder.forward_saving(weights_, state, save_, w_.backend);
          state.residual = {};  // the output: whoever made its gradient knew it
          const Tensor dx = w_.decoder.backward(
              weights_, std::move(saved), std::move(rows[1]),
              [&](int linear, const LinearGradient& of) {
                if (gradients) gradients->add(linear, of);
              },
              input_gradient, w_.backend);
          if (input_wanted) {
            gradient_->store_behind(shard, batch.first_row, dx.view(), w_.backend);
          }
        });
    if (gradients) gradients->end_shard(shard);
  }

  bool receive_gradient(int shard) {
    bool comes = false;
    wait_for_others([&] { comes = w_.ends.receive_gradient(shard, *gradient_); });
    return comes;
  }

  // Whether the gradient of the team's output comes, all of it or nothing. Receives that of this rank's first shard; a rank without
  // one hears of it from the others.
  bool gradient_comes() {
    const bool comes = shards_.begin == shards_.end || receive_gradient(shards_.begin);
    return w_.team.all_reduce_min(comes ? 1 : 0) == 1;
  }

  void wait_for_others(const std::function<void()>& receive) {
    const auto start = std::chrono::steady_clock::now();
    clock_.measure("input", receive);
    waited_ += std::chrono::steady_clock::now() - start;
  }

  // Seconds of work, without those in which it waits for the stage before or after.
  class Timer {
   public:
    explicit Timer(const Walk& walk)
        : walk_(walk), start_(std::chrono::steady_clock::now()), waited_(walk.waited_) {}
    double seconds() const {
      const auto all = std::chrono::steady_clock::now() - start_;
      return std::chrono::duration<double>(all - (walk_.waited_ - waited_)).count();
    }

   private:
    const Walk& walk_;
    std::chrono::steady_clock::time_point start_;
    std::chrono::steady_clock::duration waited_;
  };
  void tell_block(const char* event, int block, double seconds) {
    if (w_.team.rank() != 0) return;
    w_.monitor.event({{"event", event},
                      {"block", block},
                      {"samples", w_.samples.count()},
                      {"length", w_.samples.length()},
                      {"seconds", seconds},
                      {"ranks", w_.team.size()}});
  }

  // The whole team's floating-point operations: those of the linears and of the head, two a weight and token and product.
  void count(int block, bool summed, bool input_wanted) {
    const double a_product = 2.0 * tokens() * weights_of_block();
    const bool from_loss = block + 1 == w_.blocks.end && ends_with_loss();
    if (from_loss) {
      const ModelConfig& config = w_.model.config();
      clock_.count("loss", 2 * 2.0 * tokens() *
                               static_cast<double>(config.vocabulary * config.embedding_size));
    }
    // Forward again, the gradient of what is within, and that of the weights.
    clock_.count("backward", a_product * (2.0 + (summed ? 1.0 : 0.0)) -
                                 (input_wanted ? 0.0 : 2.0 * tokens() * first_weights()));
  }
  double tokens() const { return static_cast<double>(w_.samples.count() * w_.samples.length()); }
  double weights_of_block() const {
    double sum = 0.0;
    for (const LinearSpec& linear : w_.decoder.linears()) {
      sum += static_cast<double>(linear.rows * linear.cols);
    }
    return sum;
  }
  // Whose inputs' gradient is the block's alone.
  double first_weights() const {
    double sum = 0.0;
    for (const int i : w_.decoder.shared_inputs().front().linears) {
      const LinearSpec& linear = w_.decoder.linears()[i];
      sum += static_cast<double>(linear.rows * linear.cols);
    }
    return sum;
  }

  void tell() {
    if (w_.team.rank() != 0) return;
    nlohmann::json fact = {{"event", "gradients"},
                           {"blocks", {w_.blocks.begin, w_.blocks.end}},
                           {"samples", w_.samples.count()},
                           {"length", w_.samples.length()}};
    clock_.write(fact);
    w_.monitor.event(fact);
  }

  const GradientWalk& w_;
  PartRange shards_;
  WeightPrefetch prefetch_;
  PhaseClock clock_;
  std::chrono::steady_clock::duration waited_ = {};
  Save save_;
  BlockWeights weights_;
  std::vector<std::unique_ptr<Activations>> inputs_;  // of the blocks from the first on
  std::unique_ptr<Activations>
      gradient_;  // the last output, then dL/d of it and of each input before
};

}  // namespace

bool walk_gradients(const GradientWalk& walk) { return Walk(walk).run(); }

}  // namespace roundhouse
