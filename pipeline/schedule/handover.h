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
// Each set is announced by one number, and when that was sent: kActivations; kFailed where there is none, since the recipe cannot be made; or kStopped when the stage
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

  // Of the set that has arrived last, by the clocks of both ends: since it was given to be sent, however long it was not asked for.
  double seconds_on_its_way() const { return seconds_on_its_way_; }

  void progress();
  void finish();

 private:
  static constexpr std::int64_t kActivations = 1;
  static constexpr std::int64_t kStopped = 2;
  static constexpr std::int64_t kFailed = 3;

  struct Header {
    std::int64_t kind = 0;
    std::int64_t sent = 0;  // microseconds since 1970
  };
  void send_header(std::int64_t kind);
  Header receive_header();
  void release();

  const Mesh& mesh_;
  Memory& memory_;
  JobMonitor& monitor_;
  bool upstream_stopped_ = false;
  bool stop_sent_ = false;
  double seconds_on_its_way_ = 0;
  Header header_;
  StreamActivations sending_;
  std::unique_ptr<Ticket> ticket_;
  std::unique_ptr<RelaySender> relay_;  // where devices are connected
};

}  // namespace roundhouse
