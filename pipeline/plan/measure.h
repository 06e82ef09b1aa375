// Rates of the machine at hand, by doing a little of what a run does: seconds.
#pragma once

#include <filesystem>

#include "model/model_config.h"
#include "pipeline/config/config.h"
#include "pipeline/plan/device_rates.h"

namespace roundhouse {

// One block of the model's shape (or, where that is wide, of a 2048-wide one) with made-up weights goes through each method of the
// config; its phases, loading and committing are timed, and a file is written and read in the run's folder or the nearest one above
// it that is there. The device is the first GPU, or the CPU where there is none or `device: cpu` asks for it. What is not measured
// (links between ranks, methods that the config has not) is as rates_of_device() has it.
DeviceRates measure_rates(const RunConfig& config, const ModelConfig& model);

}  // namespace roundhouse
