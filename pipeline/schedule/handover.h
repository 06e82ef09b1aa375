// Activations on their way between the stages of a pipeline.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "pipeline/schedule/device_relay.h"
#include "pipeline/schedule/mesh.h"
#include "pipeline/watch/job_monitor.h"
#include "stages/flow/activations.h"

namespace roundhouse {

// At most one set at a time is on its way out: it is a second copy of a stage's activations.
//
// Each set is of a wave of recipes (waves.h), and announced by a number for each of them: kComes; kFailed where there is nothing, since
// the recipe cannot be made; or kStopped for all, when the stage before ends early; after that nothing comes. Last comes the time at which it was sent.
class Handover {
 public:
  Handover(const Mesh& mesh, Memory& memory, JobMonitor& monitor)
      : mesh_(mesh), memory_(memory), monitor_(monitor) {}

  // To the next stage: which recipes of the wave come, and their streams shard by shard. Returns once the set before has arrived.
  void send(const std::vector<bool>& come, std::vector<std::unique_ptr<Activations>> streams,
            PartRange shards);
  void send_stop(std::size_t recipes);
  // Which of the wave's recipes come; nothing: the stage before has stopped.
  std::optional<std::vector<bool>> receive_header(std::size_t recipes);
  // Then the streams, as they were sent. They have room for the shards.
  void receive(const std::vector<Activations*>& into, PartRange shards);

  // Of the set that has arrived last, by the clocks of both ends: since it was given to be sent, however long it was not asked for.
  double seconds_on_its_way() const { return seconds_on_its_way_; }

  void progress();
  void finish();

 private:
  static constexpr std::int64_t kComes = 1;
  static constexpr std::int64_t kStopped = 2;
  static constexpr std::int64_t kFailed = 3;

  void release();

  const Mesh& mesh_;
  Memory& memory_;
  JobMonitor& monitor_;
  bool upstream_stopped_ = false;
  bool stop_sent_ = false;
  double seconds_on_its_way_ = 0;
  std::int64_t sent_at_ = 0;          // of what arrived last, in microseconds since 1970
  std::vector<std::int64_t> header_;  // of what is being sent
  std::vector<std::unique_ptr<Activations>> sending_;
  std::unique_ptr<Ticket> ticket_;
  std::unique_ptr<RelaySender> relay_;  // where devices are connected
};

}  // namespace roundhouse
