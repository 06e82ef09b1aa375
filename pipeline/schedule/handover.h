// Activations on their way between the stages of a pipeline.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "pipeline/schedule/device_relay.h"
#include "pipeline/schedule/mesh.h"
#include "pipeline/watch/job_monitor.h"
#include "stages/flow/streams.h"

namespace roundhouse {

// At most one set at a time is on its way out: it is a second copy of a stage's activations.
//
// Each set is announced by one number: kActivations; kFailed where there is none, since the recipe cannot be made; or kStopped when the stage
// before ends early; after that nothing comes.
class Handover {
 public:
  Handover(const Mesh& mesh, Memory& memory, JobMonitor& monitor)
      : mesh_(mesh), memory_(memory), monitor_(monitor) {}

  // To the next stage, all streams shard by shard. Returns once the set before has arrived.
  void send(StreamActivations activations, PartRange shards);
  void send_failed();
  void send_stop();
  enum class Arrival { kActivations, kFailed, kStopped };
  // `into` has room for the shards.
  Arrival receive(const StreamActivations& into, PartRange shards);

  void progress();
  void finish();

 private:
  static constexpr std::int64_t kActivations = 1;
  static constexpr std::int64_t kStopped = 2;
  static constexpr std::int64_t kFailed = 3;

  void send_header(std::int64_t header);
  std::int64_t receive_header();
  void release();

  const Mesh& mesh_;
  Memory& memory_;
  JobMonitor& monitor_;
  bool upstream_stopped_ = false;
  bool stop_sent_ = false;
  std::int64_t header_ = 0;
  StreamActivations sending_;
  std::unique_ptr<Ticket> ticket_;
  std::unique_ptr<RelaySender> relay_;  // where devices are connected
};

}  // namespace roundhouse
