// How long the rest of a job takes. Units of different methods, exports and evaluations differ by a hundred times, so each kind of
// work counts with what its own finished pieces took; one of which none is finished yet, with the seconds that were reckoned for it,
// times what the finished kinds together took of theirs.
#pragma once

#include <map>
#include <optional>
#include <string>

#include <nlohmann/json.hpp>

namespace roundhouse {

class TimeLeft {
 public:
  // `plan`: by kind of work {"cost": of a piece, reckoned seconds times ranks, "left": pieces}; kinds are what kind_of() says.
  explicit TimeLeft(const nlohmann::json& plan = nlohmann::json::object());

  // A finished piece, as the journal has it: {"event": "block", "gradients_forward", "gradients_block", "statistics", "export", "perplexity" or
  // "task", "seconds": .., "ranks": ..}. Others are passed over.
  void finished(const nlohmann::json& event);
  // After `elapsed` seconds of the whole job on this plan; nothing while no piece is finished.
  std::optional<double> seconds(double elapsed) const;

 private:
  struct Work {
    double cost = 0;
    int left = 0, done = 0;
    double rank_seconds = 0;  // of those that are done: seconds times ranks
  };
  std::map<std::string, Work> works_;
};

// "block gptq-w4g128", "gradients 100x512", "gradients 100x512 forward", "statistics llm-mq-w2.6g128", "export dense", "perplexity test", "task piqa"; empty: an event that is no piece of work.
std::string kind_of(const nlohmann::json& event);

}  // namespace roundhouse
