#include "pipeline/steps/products.h"

#include "pipeline/run/run_files.h"
#include "pipeline/steps/export_step.h"

namespace roundhouse {

bool make_products(Job& job, Communicator& group, const std::vector<std::string>& names,
                   RunEvaluations& evaluations) {
  const RunConfig& config = job.config();
  for (const std::string& name : names) {
    if (name != kOriginal &&
        !export_recipes(job, group, {name}, config.export_formats, config.run / "export")) {
      return false;
    }
    if (!evaluate_recipes(job, group, {name}, evaluations)) return false;
  }
  return true;
}

}  // namespace roundhouse
