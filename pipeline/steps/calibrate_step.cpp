#include "pipeline/steps/calibrate_step.h"

#include <algorithm>
#include <optional>
#include <utility>

#include "pipeline/run/run_files.h"

namespace roundhouse {
namespace {

// Token ids for all ranks: from the store's record `key`, or drawn by rank 0 and committed.
Samples calibrate(Job& job, const std::string& key, const SampleOptions& options) {
  job.monitor().phase("calibration: token windows");
  std::string ids;
  if (job.first()) {
    std::optional<Record> record = job.store().load(key);
    if (!record) {
      const DrawnSamples drawn = draw_samples(options, job.config().model, job.tokenizer(),
                                              job.text_threads(), job.monitor());
      record = to_record(drawn.samples);
      job.store().commit(key, *record);
      nlohmann::json event = drawn.facts;
      event["event"] = "calibration";
      event["record"] = key;
      event["samples"] = drawn.samples.count();
      event["tokens"] = drawn.samples.length();
      job.monitor().event(event);
    }
    const HostTensor& tensor = record->tensors.at("ids");
    ids.assign(reinterpret_cast<const char*>(tensor.bytes().data()), tensor.bytes().size());
  }
  {
    const Watchdog::Waiting waiting(&job.monitor().watchdog());
    ids = job.share(std::move(ids));
  }
  std::vector<std::int32_t> values(ids.size() / sizeof(std::int32_t));
  std::ranges::copy(ids, reinterpret_cast<char*>(values.data()));
  return Samples(options.samples, options.sequence_length, options.shards, std::move(values));
}

}  // namespace

Samples calibration_samples(Job& job, const std::string& set) {
  return calibrate(job, calibration_key(set), calibration_set(job.config(), set));
}

Samples gradient_samples(Job& job, const Needs::Gradients& gradients) {
  SampleOptions options = job.config().calibration;
  options.samples = gradients.samples;
  options.sequence_length = gradients.sequence_length;
  options.keys = "gradients";
  return calibrate(job, gradient_windows_key(gradients), options);
}

}  // namespace roundhouse
