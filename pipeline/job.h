// What every command that computes needs: the ranks, a device, the model, the run's store, and somebody watching.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "comm/launcher.h"
#include "kernels/backend.h"
#include "kernels/cpu/thread_pool.h"
#include "model/causal_lm.h"
#include "model/tokenizer/tokenizer.h"
#include "pipeline/config/config.h"
#include "pipeline/run/hdf5_store.h"
#include "pipeline/run/lease.h"
#include "pipeline/run/model_identity.h"
#include "pipeline/run/run_folder.h"
#include "pipeline/start/agreement.h"
#include "pipeline/start/device_choice.h"
#include "pipeline/start/threads.h"
#include "pipeline/watch/job_monitor.h"
#include "stages/flow/activations.h"

namespace roundhouse {

class Job {
 public:
  // kReads: takes no lease and leaves the run's own files as they are, so it may go on beside the job that holds the run. What
  // is there and sealed stays as it is.
  enum class Access { kHolds, kReads };
  // Collective. Reads and checks the model, takes the run's lease (rank 0), without which no rank writes, and settles its config;
  // throws InputError or Error before any work is done. `evaluations`: what will be measured, the config's own or others, which do
  // not become part of the run's config. `before_claim`, on every rank: called before anything is written into the run's folder;
  // there are no store, inputs, journal and events yet.
  Job(LaunchSession& session, RunConfig config, const Evaluations& evaluations,
      Access access = Access::kHolds, const std::function<void(Job&)>& before_claim = {});
  ~Job();

  const RunConfig& config() const { return config_; }
  Communicator& world() { return *world_; }
  // Between hosts, by this rank: comm/counted_communicator.h.
  std::uint64_t sent_bytes() const { return sent_; }
  bool first() const { return world_->rank() == 0; }
  int ranks_a_node() const { return ranks_a_node_; }  // of this rank's
  Backend& backend() { return *backend_; }
  const DeviceChoice& device() const { return device_; }
  const std::string& threads_summary() const { return threads_summary_; }  // "": they were given
  const CausalLM& model() const { return *model_; }
  const DecoderBlock& decoder() const { return *decoder_; }
  int blocks() const { return static_cast<int>(model_->config().blocks); }
  // Precondition: a recipe needs calibration, or something is measured.
  const Tokenizer& tokenizer() const { return *tokenizer_; }
  Hdf5Store& store() { return *store_; }
  ActivationBudget& budget() { return *budget_; }
  std::size_t saved_activation_bytes() const { return saved_activation_bytes_; }
  ThreadPool& text_threads() { return *text_threads_; }  // for texts, which rank 0 reads
  Journal& journal() { return *journal_; }
  JobMonitor& monitor() { return *monitor_; }
  const RunInputs& inputs() const { return inputs_; }
  ModelIdentity& model_identity() { return *model_identity_; }

  const Recipe& recipe(const std::string& name) const;  // throws InputError
  std::vector<std::string> recipe_names() const;

  // Says and journals that a file of the run is not what was written.
  void report_damage(const std::string& what, const std::string& why);

  // Collective over `group`: reads those of these records that were not read or made by this job. Throws DamagedRecords, the same
  // on every rank, where some are damaged.
  void check_content(Communicator& group, const std::vector<std::string>& records);

  // Collective over `group`: does any of its ranks want to stop? The same answer to all of them.
  bool stop_requested(Communicator& group);
  // Rank 0's text, on every rank. Collective.
  std::string share(std::string text);

 private:
  void check_lengths(const Evaluations& evaluations) const;
  void check_unclaimed(const std::function<void(Job&)>& check);
  void settle();
  Facts facts() const;  // that all ranks have to share

  RunConfig config_;
  Access access_;
  std::atomic<std::uint64_t> sent_ = 0;
  std::unique_ptr<Communicator> world_;
  int ranks_a_node_;
  std::unique_ptr<Lease> lease_;  // rank 0
  // Before all that takes long to go: until the last of it has gone the watchdog tells the others that this rank is alive.
  std::unique_ptr<Journal> journal_;
  std::unique_ptr<JobMonitor> monitor_;
  std::unique_ptr<CausalLM> model_;
  DeviceChoice device_;
  std::unique_ptr<Backend> backend_;
  std::string threads_summary_;
  std::unique_ptr<DecoderBlock> decoder_;
  std::unique_ptr<Tokenizer> tokenizer_;
  RunInputs inputs_;
  std::vector<Damaged> damaged_;  // rank 0: files of the run that were written anew
  std::unique_ptr<Hdf5Store> store_;
  std::unique_ptr<ActivationBudget> budget_;
  std::size_t saved_activation_bytes_ = 0;
  std::unique_ptr<ThreadPool> text_threads_;
  std::unique_ptr<ModelIdentity> model_identity_;
};

// Which file was read, and the warnings.
void say_tokenizer(const Tokenizer& tokenizer, Monitor& monitor);
// Processors for this rank: `threads`, or, where that is 0, its share of the node's (threads.h; collective then).
RankThreads rank_threads(int threads, const LaunchSession& session);
// `threads`: of the CPU.
std::unique_ptr<Backend> make_rank_backend(const DeviceChoice& device, int threads, bool cpu_bf16);
// This rank's share of half of what is free on its node.
std::size_t default_activation_bytes(const LaunchSession& session);
// Memory that cannot be pinned becomes a line and an event.
void report_pin_failure(ActivationBudget& budget, Monitor& monitor);

// The identities of all records of a run.
void set_identities(Hdf5Store& store, const RunConfig& config, const RunInputs& inputs);

// Does any recipe look at calibration text?
bool needs_calibration(const RunConfig& config);
// The record of the token windows that gradients are of.
std::string gradient_windows_key(const Needs::Gradients& gradients);

// Settles the model's identity by the records of all recipes; returns the recipes of which every block is in the store.
// Collective; once a job.
std::vector<std::string> complete_recipes(Job& job);
// The same; rank 0 says of each other one that it is left out.
std::vector<std::string> complete_recipes_said(Job& job);

}  // namespace roundhouse
