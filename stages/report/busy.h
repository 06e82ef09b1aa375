// Who was busy when: ranks over time, as places in a drawing 1000 wide and one high for each rank.
#pragma once

#include <vector>

#include <nlohmann/json.hpp>

#include "stages/report/report.h"

namespace roundhouse {

// Time without pauses: those in which nobody worked for more than a tenth of all work are cut out.
class WorkingTime {
 public:
  explicit WorkingTime(const std::vector<Span>& spans);
  double operator()(double time) const;  // seconds of working time before it
  double total() const { return total_; }

  struct Pause {
    double at;       // in working time
    double seconds;  // how long it was
  };
  const std::vector<Pause>& pauses() const { return pauses_; }

 private:
  struct Piece {
    double begin, end, before;  // `before`: working time of the pieces before
  };
  std::vector<Piece> pieces_;
  std::vector<Pause> pauses_;
  double total_ = 0;
};

// null where nothing is known.
nlohmann::json draw_busy(const ReportRun& run);

}  // namespace roundhouse
