// Token windows: drawn once a run, and read by every job after that.
#pragma once

#include <string>

#include "pipeline/job.h"
#include "stages/calibrate/samples.h"

namespace roundhouse {

// Those of this set (RunConfig::calibrations) that activations start from. Collective over the world, as the next one is.
Samples calibration_samples(Job& job, const std::string& set);
// Those that gradients are of: from the calibration's text, cut into as many shards.
Samples gradient_samples(Job& job, const Needs::Gradients& gradients);

}  // namespace roundhouse
