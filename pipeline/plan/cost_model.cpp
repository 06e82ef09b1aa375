#include "pipeline/plan/cost_model.h"

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <utility>

#include "model/architectures/tensor_names.h"
#include "pipeline/plan/rank_memory.h"

namespace roundhouse {
namespace {

namespace fs = std::filesystem;

// A text that is not there yet counts as WikiText-2's test set does in LLaMA's tokens; else four bytes a token.
constexpr double kTokensOfUnseenText = 341'000;
constexpr double kBytesOfToken = 4;

double bytes_of(const std::vector<TensorInfo>& tensors, double bytes_each) {
  return static_cast<double>(element_count(tensors)) * bytes_each;
}

double tokens_of(const fs::path& text, int window, int limit) {
  std::error_code error;
  const std::uintmax_t bytes = fs::file_size(text, error);
  double tokens = error ? kTokensOfUnseenText : static_cast<double>(bytes) / kBytesOfToken;
  if (limit > 0) tokens = std::min(tokens, static_cast<double>(limit) * window);
  return tokens;
}

}  // namespace

double StepTime::seconds() const {
  double sum = 0;
  for (const auto& [phase, seconds] : phases) sum += seconds;
  return sum;
}

CostModel::CostModel(const PlannedJob& job) : job_(job) {
  const auto each = static_cast<double>(size_of(job.model.dtype));
  for (const LinearSpec& linear : job.decoder.linears())
    weights_ += static_cast<double>(linear.rows * linear.cols);
  largest_part_ = static_cast<double>(largest_part(job.decoder.linears(), team()));
  block_bytes_ = bytes_of(tensors_of_block(job.model, 0), each);
  outside_bytes_ = bytes_of(tensors_before_blocks(job.model), each) +
                   bytes_of(tensors_after_blocks(job.model), each);
  for (std::size_t r = 0; r < job.config.recipes.size(); ++r) {
    methods_.push_back(make_method(recipe(r)));
    costs_.push_back(cost_of(r, MadeBefore{}));
    const std::vector<std::string>& include = recipe(r).include;
    outer_.push_back(include.empty() ? nullptr : job.decoder.outer(include));
    const SampleOptions& samples = samples_of(r);
    outer_costs_.push_back(
        outer(r) == nullptr
            ? BlockCost{}
            : methods_[r]->cost(*outer(r), samples.samples, samples.sequence_length,
                                job_.rates.is_host ? DType::kF32 : DType::kBF16, MadeBefore{}));
  }
}

BlockCost CostModel::cost_of(std::size_t r, MadeBefore made) const {
  const SampleOptions& samples = samples_of(r);
  BlockCost cost = methods_[r]->cost(job_.decoder, samples.samples, samples.sequence_length,
                                     job_.rates.is_host ? DType::kF32 : DType::kBF16, made);
  if (!recipe(r).skips()) return cost;
  // What rounds or solves linears has less to do; everything else goes through all of them.
  const double share = mean_over_blocks(r, [&](const auto& schemes) {
    double quantized = 0;
    for (std::size_t i = 0; i < schemes.size(); ++i) {
      const LinearSpec& spec = job_.decoder.linears()[i];
      if (!schemes[i].is_original()) quantized += static_cast<double>(spec.rows * spec.cols);
    }
    return quantized / weights_;
  });
  TeamTraffic& traffic = cost.traffic;
  for (double* part : {&cost.rounded, &cost.clustered, &traffic.gathered, &traffic.codes})
    *part *= share;
  if (const auto solve = cost.flops.find("solve"); solve != cost.flops.end())
    solve->second *= share;
  return cost;
}

const BlockCost& CostModel::cost_of(const Step& step) const {
  if (step.block >= job_.model.blocks) return outer_costs_[step.recipe];
  const MadeBefore made{
      .original = recipe(step.recipe).needs.full_precision_stream && !step.original,
      .gathered = step.gathered};
  if (!made.original && !made.gathered) return costs_[step.recipe];
  const std::pair key{step.recipe, (made.original ? 1 : 0) + (made.gathered ? 2 : 0)};
  auto found = beside_.find(key);
  if (found == beside_.end()) found = beside_.emplace(key, cost_of(step.recipe, made)).first;
  return found->second;
}

int CostModel::nodes() const {
  return (job_.ranks + job_.rates.ranks_a_node - 1) / job_.rates.ranks_a_node;
}

double CostModel::team_link() const {
  // A ring over all of a team is as fast as its slowest link.
  return team() > job_.rates.ranks_a_node ? std::min(job_.rates.team_link, job_.rates.node_link)
                                          : job_.rates.team_link;
}

// Of a file's bytes, to the device of each rank of the team, from the page cache; a file system that cannot follow is waited for.
// `shared`: those that the ranks tell to each other where they load in parts.
void CostModel::add_load(StepTime& time, double bytes, double shared) const {
  const int ranks = team();
  const bool parts = loads_in_parts() && shared > 0;
  const double largest = parts ? largest_part_ / weights_ : 1, own = parts ? 1.0 / ranks : 1;
  const double load = (bytes - shared * (1 - largest)) / job_.rates.load;
  const double others = time.seconds();
  time.phases["load"] += load;
  time.work += (bytes - shared * (1 - own)) / job_.rates.load * ranks;
  if (parts) {
    // The words by which they agree, the hashes, and the parts.
    time.phases["messages"] +=
        load_traffic().received / team_link() + 4 * job_.rates.message_seconds * std::log2(ranks);
  }
  const double rate = std::min(job_.rates.file_read, job_.rates.file_system / nodes());
  const double of_node = bytes - shared * (1 - file_share_of_node());
  const double late = of_node / rate - load - others;  // it is read while the unit before is made
  if (late > 0) time.phases["read"] += late;
}

void CostModel::add_block_load(StepTime& time) const {
  add_load(time, block_bytes_, weights_ * static_cast<double>(size_of(job_.model.dtype)));
}

bool CostModel::loads_in_parts() const { return !job_.rates.is_host && team() > 1; }

LoadTraffic CostModel::load_traffic() const {
  if (!loads_in_parts()) return {};
  return roundhouse::load_traffic(job_.decoder.linears(), team(), job_.rates.bytes_of_activation());
}

double CostModel::load_sent(const Step& step) const {
  const bool loads = step.kind == Step::Kind::kForward || step.kind == Step::Kind::kBackward ||
                     (step.loads && !recipe(step.recipe).needs.makes_blocks_of_gradients());
  return loads && step.block < job_.model.blocks ? load_traffic().sent : 0;
}

// Of the weights that a team loads in parts, what the ranks of one node read.
double CostModel::file_share_of_node() const {
  if (!loads_in_parts()) return 1;
  return std::min(1.0, static_cast<double>(job_.rates.ranks_a_node) / team());
}

double CostModel::block_bytes_read() const {
  const double nodes_of_team = std::ceil(static_cast<double>(team()) / job_.rates.ranks_a_node);
  const double shared = weights_ * static_cast<double>(size_of(job_.model.dtype));
  return loads_in_parts() ? shared + (block_bytes_ - shared) * nodes_of_team
                          : block_bytes_ * nodes_of_team;
}

StepTime CostModel::timed(const std::string& method, const BlockCost& cost) const {
  const DeviceRates& rates = job_.rates;
  const int ranks = team();
  StepTime time;
  double computing = 0;
  const auto add = [&](const std::string& phase, double amount, double rate) {
    if (amount <= 0) return;
    const double seconds = amount / rate * cost.busiest(phase, ranks, shards());
    time.phases[phase] += seconds;
    time.work += amount / rate;
    computing += seconds;
  };
  for (const auto& [phase, flops] : cost.flops) add(phase, flops, rates.rate_of(method, phase));
  // A rate that was measured has it in.
  for (const auto& [phase, flops] : cost.attention) {
    if (!rates.phases.contains(method + "." + phase) && !rates.phases.contains(phase))
      add(phase, flops, rates.attention);
  }
  if (!rates.phases.contains(method + ".solve")) {
    add("solve", cost.rounded, rates.round);
    add("solve", cost.clustered, rates.cluster);
  }
  if (rates.host_copy > 0) {
    const double copies = std::max(cost.bytes_up, cost.bytes_down) / ranks / rates.host_copy;
    if (copies > computing) time.phases["copies"] = copies - computing;
  }
  if (ranks > 1) {
    const TeamBytes bytes = team_bytes(cost.traffic, ranks, shards(), rates.bytes_of_activation());
    time.phases["messages"] = bytes.received_by_devices / team_link() +
                              bytes.received_by_hosts / rates.host_message +
                              cost.traffic.rounds * rates.message_seconds * std::log2(ranks);
  }
  return time;
}

StepTime CostModel::make(const Step& step) const {
  const std::size_t r = step.recipe;
  StepTime time = timed(recipe(r).method, cost_of(step));
  const bool outside = step.block >= job_.model.blocks;
  const double weights = outside ? outer_weights(r) : weights_;
  if (step.loads && !recipe(r).needs.makes_blocks_of_gradients()) {
    if (outside) {  // every rank all of it
      add_load(time, weights * static_cast<double>(size_of(job_.model.dtype)), 0);
    } else {
      add_block_load(time);
    }
  }
  time.phases["other"] = job_.rates.unit_seconds;
  // One rank packs while its team waits; what it has packed is written while the next unit is made.
  const double packing = weights / job_.rates.commit;
  const double writing =
      (outside ? outer_record_bytes(r) : record_bytes(r)) / job_.rates.file_write;
  time.phases["commit"] = packing + std::max(0.0, writing - time.seconds());
  time.work += packing + writing;
  return time;
}

StepTime CostModel::make_outside(std::size_t r) const {
  Step step = alone(Step::Kind::kMake, r);
  step.block = static_cast<int>(job_.model.blocks);
  return make(step);
}

double CostModel::forward_seconds(double tokens, int length) const {
  const BlockSizes sizes{job_.decoder, tokens, static_cast<double>(length)};
  return 2 * tokens * weights_ / job_.rates.rate_of("", "forward") +
         sizes.attention() / job_.rates.attention;
}

StepTime CostModel::replay(const Step& step) const {
  const SampleOptions& samples = samples_of(step.recipe);
  const double tokens = static_cast<double>(samples.samples) * samples.sequence_length;
  StepTime time;
  const double busiest = BlockCost{}.busiest("forward", team(), shards());
  const auto pass = [&](bool goes) {
    if (!goes) return;
    time.phases["forward"] += forward_seconds(tokens, samples.sequence_length) * busiest;
    time.work += forward_seconds(tokens, samples.sequence_length);
  };
  const bool quantized = recipe(step.recipe).needs.quantized_stream;
  pass(quantized);
  if (quantized) add_load(time, block_bytes_, 0);  // of the record, by every rank
  pass(step.original);
  if (step.original && step.loads) add_block_load(time);
  return time;
}

StepTime CostModel::embed(const Step& step) const {
  StepTime time;
  const double way = job_.rates.host_copy > 0 ? job_.rates.host_copy : job_.rates.host_message;
  time.phases["embedding"] = rank_stream_bytes(step) / way;
  time.work = time.phases["embedding"] * team();
  return time;
}

StepTime CostModel::load_snapshot(const Step& step) const {
  StepTime time;
  time.phases["snapshots"] =
      rank_stream_bytes(step) * std::min(team(), job_.rates.ranks_a_node) / job_.rates.file_read;
  return time;
}

StepTime CostModel::write_snapshot(const Step& step) const {
  StepTime time;
  time.phases["snapshots"] =
      rank_stream_bytes(step) * std::min(team(), job_.rates.ranks_a_node) / job_.rates.file_write;
  return time;
}

BlockCost CostModel::gradient_block(std::size_t r) const {
  const Needs::Gradients& gradients = *recipe(r).needs.gradients;
  GradientSums wanted;
  for (const Recipe& other : job_.config.recipes) {
    const auto& theirs = other.needs.gradients;
    if (!theirs || theirs->samples != gradients.samples ||
        theirs->sequence_length != gradients.sequence_length)
      continue;
    wanted.sum = wanted.sum || theirs->sums.sum;
    wanted.squares = wanted.squares || theirs->sums.squares;
  }
  const auto length = static_cast<double>(gradients.sequence_length);
  return gradient_cost({job_.decoder, gradients.samples * length, length},
                       (wanted.sum ? 1 : 0) + (wanted.squares ? 1 : 0));
}

StepTime CostModel::gradient_forward(std::size_t r) const {
  BlockCost cost = gradient_block(r);
  for (auto* phases : {&cost.flops, &cost.attention}) phases->erase("backward");
  cost.traffic = {};
  StepTime time = timed("gradients", cost);
  add_block_load(time);
  return time;
}

StepTime CostModel::gradient_backward(std::size_t r) const {
  BlockCost cost = gradient_block(r);
  for (auto* phases : {&cost.flops, &cost.attention}) phases->erase("forward");
  StepTime time = timed("gradients", cost);
  add_block_load(time);
  // The gradient at the block's input is written down.
  time.phases["snapshots"] = gradient_stream_bytes(r) / job_.rates.file_write;
  return time;
}

StepTime CostModel::statistics(std::size_t r) const {
  BlockCost cost;
  cost.cuts["solve"] = BlockSizes{job_.decoder, 0}.tiles();
  cost.rounded = 2.0 * static_cast<double>(methods_[r]->schemes().size()) * weights_;
  return timed("", cost);
}

StepTime CostModel::decide(std::size_t r) const {
  StepTime time;
  time.phases["decide"] = 1e-6 * static_cast<double>(job_.model.blocks) * 100;
  // Outlier thresholds are those of all weights, which the ranks read once together.
  if (recipe(r).needs.makes_blocks_of_gradients()) {
    const double bytes = block_bytes_ * static_cast<double>(job_.model.blocks);
    time.phases["decide"] += 2 * bytes / job_.ranks / job_.rates.load;
    time.work = time.phases["decide"] * job_.ranks;
  }
  return time;
}

EvaluationSize CostModel::evaluated() const {
  const Evaluations& evaluations = job_.config.evaluations;
  EvaluationSize size;
  size.works = static_cast<int>(evaluations.perplexity.size() + evaluations.tasks.size());
  size.length = evaluations.perplexity.empty() ? 512 : 0;  // of tasks at most, mostly
  for (const PerplexityTask& task : evaluations.perplexity) {
    const double tokens = tokens_of(task.text, task.window, task.limit);
    size.tokens += tokens;
    size.length = std::max(size.length, task.window);
    size.largest = std::max(size.largest, tokens * (evaluations.kl ? 2 : 1));
  }
  if (evaluations.kl) size.compared = size.tokens;
  for (const TaskOptions& task : evaluations.tasks) {
    const double tokens = tokens_of(task.file, 100, task.limit);
    size.tokens += tokens;
    size.largest = std::max(size.largest, tokens);
  }
  return size;
}

EvaluationCost CostModel::evaluation(Evaluated what, int ranks) const {
  EvaluationSize size = evaluated();
  if (what == Evaluated::kOriginal) size.compared = 0;
  if (size.tokens <= 0) return {};
  return best_evaluation({.model = job_.model,
                          .decoder = job_.decoder,
                          .rates = job_.rates,
                          .ranks = ranks,
                          .activation_bytes = rank_memory(*this).activations,
                          .device_bytes = job_.rates.device_bytes},
                         size);
}

StepTime CostModel::measure_original() const {
  StepTime time;
  const EvaluationCost cost = evaluation(Evaluated::kOriginal, job_.ranks);
  if (cost.seconds > 0) time.phases["evaluate"] = cost.seconds;
  time.work = cost.work;
  return time;
}

double CostModel::export_seconds(std::size_t r, const std::string& format, int ranks) const {
  const double bytes = export_bytes(r, format);
  const double files = std::ceil(bytes / (job_.config.export_shard_gib * 0x1p30));
  const double writers = std::min<double>(ranks, files);
  const double nodes_writing =
      std::min<double>(nodes(), std::ceil(writers / job_.rates.ranks_a_node));
  const double rate = std::min(job_.rates.file_write * nodes_writing, job_.rates.file_system);
  return static_cast<double>(job_.model.blocks) * weights_ / job_.rates.pack / writers +
         2 * bytes / rate;  // written, and hashed as it is
}

StepTime CostModel::make_products(std::size_t r, int ranks) const {
  StepTime time;
  for (const std::string& format : job_.config.export_formats) {
    time.phases["export"] += export_seconds(r, format, ranks);
    time.work += static_cast<double>(job_.model.blocks) * weights_ / job_.rates.pack;
  }
  const EvaluationCost cost = evaluation(Evaluated::kRecipe, ranks);
  if (cost.seconds > 0) time.phases["evaluate"] = cost.seconds;
  time.work += cost.work;
  return time;
}

double CostModel::one_stream_bytes(std::size_t r) const {
  const SampleOptions& samples = samples_of(r);
  return job_.rates.bytes_of_activation() * static_cast<double>(samples.samples) *
         samples.sequence_length * static_cast<double>(job_.model.hidden_size);
}

double CostModel::stream_bytes(const Step& step) const {
  const int streams =
      (recipe(step.recipe).needs.quantized_stream ? 1 : 0) + (step.original ? 1 : 0);
  return streams * one_stream_bytes(step.recipe);
}

// Of the rank that holds most shards.
double CostModel::rank_stream_bytes(const Step& step) const {
  return stream_bytes(step) * BlockCost{}.busiest("forward", team(), shards());
}

double CostModel::gradient_stream_bytes(std::size_t r) const {
  const auto& gradients = recipe(r).needs.gradients;
  return gradients ? job_.rates.bytes_of_activation() * static_cast<double>(gradients->samples) *
                         gradients->sequence_length * static_cast<double>(job_.model.hidden_size)
                   : 0.0;
}

double CostModel::transfer_seconds(const Step& step) const {
  return rank_stream_bytes(step) / job_.rates.node_link + job_.rates.message_seconds;
}

double CostModel::forward_share(const Step& step) const {
  const double made = make(step).seconds();
  return made > 0 ? std::min(1.0, replay(step).phases["forward"] / made) : 1;
}

TeamBytes CostModel::unit_traffic(const Step& step) const {
  return team_bytes(cost_of(step).traffic, team(), shards(), job_.rates.bytes_of_activation());
}

TeamBytes CostModel::gradient_traffic(std::size_t r) const {
  return team_bytes(gradient_block(r).traffic, team(), shards(), job_.rates.bytes_of_activation());
}

}  // namespace roundhouse
