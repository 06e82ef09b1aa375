#include "pipeline/schedule/gradient_schedule.h"

#include <algorithm>
#include <chrono>
#include <list>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <utility>

#include <fmt/format.h>

#include <nlohmann/json.hpp>

#include "comm/host/backoff.h"
#include "comm/together.h"
#include "comm/watchdog.h"
#include "pipeline/schedule/snapshots.h"

namespace roundhouse {
namespace {

constexpr std::string_view kTensor = "gradient";

std::string snapshot_key(const std::string& folder, int block, int shard) {
  return fmt::format("{}/at-{:04}/shard-{:02}", folder, block, shard);
}

// Shards on their way to the stage after or before. Each is announced by one number: kShard, or kStopped when the other stage
// ends early; after that nothing comes.
class ShardMessages {
 public:
  ShardMessages(const Mesh& mesh, JobMonitor& monitor) : mesh_(mesh), monitor_(monitor) {
    monitor_.on_tick([this] { progress(); });
  }
  ~ShardMessages() { monitor_.on_tick(nullptr); }

  // The shard's memory may be written to after wait() for it.
  void send(int shard, Activations& from, int to) { start(shard, kShard, from.bytes(shard), to); }
  void send_stop(int to) { start(-1, kStopped, {}, to); }
  bool receive(int shard, Activations& into, int from) {
    wait(shard);
    const Watchdog::Waiting waiting(&monitor_.watchdog());
    std::int64_t header = 0;
    receive_bytes(std::as_writable_bytes(std::span(&header, 1)), from);
    if (header == kStopped) return false;
    require(header == kShard, "a stage received something else than a shard");
    receive_bytes(into.bytes(shard), from);
    return true;
  }

  void wait(int shard) {
    const Watchdog::Waiting waiting(&monitor_.watchdog());
    std::erase_if(sending_, [&](Message& message) {
      if (message.shard != shard) return false;
      message.ticket->wait();
      return true;
    });
  }
  void finish() {
    const Watchdog::Waiting waiting(&monitor_.watchdog());
    for (Message& message : sending_) message.ticket->wait();
    sending_.clear();
    tell_of_sent();
  }

 private:
  static constexpr std::int64_t kShard = 1;
  static constexpr std::int64_t kStopped = 2;
  struct Message {
    int shard;
    std::int64_t header;
    std::unique_ptr<Ticket> ticket;
  };

  // {"event": "gradient_transfers", "transfers": [[from, to, shards, bytes, begin, end], ..]}: ranks from this one, seconds until now.
  void tell_of_sent() {
    if (sent_.empty()) return;
    const auto now = std::chrono::steady_clock::now();
    const auto before = [&](std::chrono::steady_clock::time_point time) {
      return std::chrono::duration<double>(now - time).count();
    };
    nlohmann::json transfers = nlohmann::json::array();
    for (const auto& [to, sent] : std::exchange(sent_, {}))
      transfers.push_back({0, to - mesh_.world().rank(), sent.messages, sent.bytes,
                           before(sent.begin), before(sent.end)});
    monitor_.event({{"event", "gradient_transfers"}, {"transfers", transfers}});
  }

  void start(int shard, std::int64_t header, std::span<std::byte> bytes, int to) {
    Message& message = sending_.emplace_back(Message{shard, header, nullptr});
    std::vector<Send> sends{{std::as_bytes(std::span(&message.header, 1)), to}};
    if (!bytes.empty()) {
      sends.push_back({bytes, to});
      Sent& sent = sent_[to];
      if (sent.messages++ == 0) sent.begin = std::chrono::steady_clock::now();
      sent.end = std::chrono::steady_clock::now();
      sent.bytes += bytes.size();
    }
    message.ticket = mesh_.world().start(sends, {});
    progress();
  }
  // The other stage may be at work for long: what this one still sends moves on meanwhile.
  void receive_bytes(std::span<std::byte> bytes, int from) {
    const Receive receive{bytes, from};
    const auto ticket = mesh_.world().start({}, {&receive, 1});
    for (Backoff backoff(0); !ticket->done(); backoff.pause()) progress();
  }
  void progress() {
    std::erase_if(sending_,
                  [](Message& message) { return message.ticket && message.ticket->done(); });
  }

  const Mesh& mesh_;
  JobMonitor& monitor_;
  std::list<Message> sending_;  // headers stay where they are
  struct Sent {
    std::int64_t messages = 0;
    std::size_t bytes = 0;
    std::chrono::steady_clock::time_point begin, end;
  };
  std::map<int, Sent> sent_;  // by receiver
};

class Stage {
 public:
  // The blocks [first, end) of the model are to be gone through backwards.
  Stage(const GradientSchedule& schedule, const std::vector<bool>& done, int first, int end)
      : s_(schedule),
        done_(done),
        first_(first),
        end_(end),
        own_(schedule.mesh.blocks()),
        shards_(parts_of_rank(schedule.samples.shards(), schedule.mesh.team().rank(),
                              schedule.mesh.team().size())),
        messages_(schedule.mesh, schedule.monitor) {}

  bool run() {
    if (own_.begin >= end_) return true;
    GradientWalk walk{
        .backend = s_.backend,
        .team = s_.mesh.team(),
        .device_team = s_.mesh.device_team(),
        .model = s_.model,
        .decoder = s_.decoder,
        .samples = s_.samples,
        .budget = s_.budget,
        .saved_activation_bytes = s_.saved_activation_bytes,
        .monitor = s_.monitor,
        .wanted = s_.wanted,
        .blocks = {own_.begin, std::min(own_.end, end_)},
        .first_wanted = first_,
        .ends = ends(),
        .summed = [&](int block) { return !done_[block]; },
        .take = s_.take,
        .block_done = [&](int block, Activations* gradient) { return leave(block, gradient); }};
    const bool finished = walk_gradients(walk);
    // In place of the first shard's gradient: a rank without shards is sent nothing.
    const bool awaited = own_.begin > first_ && shards_.begin < shards_.end;
    if (!finished && awaited && !gradient_sent_) messages_.send_stop(s_.mesh.previous_rank());
    messages_.finish();
    return finished;
  }

 private:
  WalkEnds ends() {
    WalkEnds ends;
    if (own_.begin > 0) {
      ends.receive_input = [&](int shard, Activations& into) {
        require(messages_.receive(shard, into, s_.mesh.previous_rank()),
                "a stage stopped before its forward pass was over");
      };
    }
    if (own_.end < end_) {
      ends.send_output = [&](int shard, Activations& from) {
        messages_.send(shard, from, s_.mesh.next_rank());
      };
      ends.receive_gradient = [&](int shard, Activations& into) {
        return messages_.receive(shard, into, s_.mesh.next_rank());
      };
    } else if (end_ < s_.model.config().blocks) {
      ends.receive_gradient = [&](int shard, Activations& into) {
        load_shard(snapshot_key(s_.folder, end_, shard), kTensor, into, shard, s_.store);
        s_.monitor.tick();
        return true;
      };
    }
    if (own_.begin > first_) {
      ends.send_gradient = [&](int shard, Activations& from) {
        messages_.send(shard, from, s_.mesh.previous_rank());
        gradient_sent_ = true;
      };
    }
    ends.finish = [&] { messages_.finish(); };
    return ends;
  }

  // After a block. False: asked to stop; the team's rank 0 decides.
  bool leave(int block, Activations* gradient) {
    if (gradient && block > first_) {
      s_.monitor.phase(fmt::format("gradients, snapshot before block {}", block));
      for (int shard = shards_.begin; shard < shards_.end; ++shard) {
        s_.store.commit(snapshot_key(s_.folder, block, shard),
                        record_of_shard(kTensor, *gradient, shard));
        s_.monitor.tick();
      }
      s_.mesh.team().barrier();
    }
    for (int shard = shards_.begin; shard < shards_.end; ++shard) {
      s_.store.remove(snapshot_key(s_.folder, block + 1, shard));
    }
    if (block == first_) return true;
    std::uint8_t wish = s_.monitor.stop_requested() ? 1 : 0;
    s_.mesh.team().broadcast(std::as_writable_bytes(std::span(&wish, 1)), 0);
    return wish == 0;
  }

  const GradientSchedule& s_;
  const std::vector<bool>& done_;
  int first_, end_;
  PartRange own_, shards_;
  ShardMessages messages_;
  bool gradient_sent_ = false;
};

// Blocks before the earliest snapshot from which all that is missing can be reached: the gradient there is known. `blocks`: none.
int find_gradient(const GradientSchedule& s, int last_missing, int blocks) {
  Communicator& world = s.mesh.world();
  std::set<int> listed;
  if (world.rank() == 0) {
    for (const std::string& key : s.store.keys(s.folder)) {
      int place = 0;
      if (std::sscanf(key.c_str() + s.folder.size(), "/at-%d/", &place) == 1) listed.insert(place);
    }
  }
  for (const int place :
       nlohmann::json::parse(share(world, nlohmann::json(listed).dump())).get<std::vector<int>>()) {
    if (place <= last_missing || place >= blocks) continue;
    std::vector<std::string> keys;
    for (int shard = 0; shard < s.samples.shards(); ++shard) {
      keys.push_back(snapshot_key(s.folder, place, shard));
    }
    if (all_whole(keys, s.store, world)) return place;
  }
  return blocks;
}

}  // namespace

bool walk_all_gradients(const GradientSchedule& schedule, const std::vector<bool>& done) {
  const auto blocks = static_cast<int>(schedule.model.config().blocks);
  require(static_cast<int>(done.size()) == blocks, "what is done of the gradients: one a block");
  const auto first = static_cast<int>(std::ranges::find(done, false) - done.begin());
  if (first == blocks) return true;
  const auto last =
      static_cast<int>(done.rend() - std::find(done.rbegin(), done.rend(), false)) - 1;
  const int end = find_gradient(schedule, last, blocks);
  const bool finished = Stage(schedule, done, first, end).run();
  Communicator& world = schedule.mesh.world();
  const bool all = world.all_reduce_min(finished ? 1 : 0) == 1;
  if (all && world.rank() == 0) {
    for (const std::string& key : schedule.store.keys(schedule.folder)) schedule.store.remove(key);
  }
  return all;
}

}  // namespace roundhouse
