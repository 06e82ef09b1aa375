// Token windows: drawn once a run, and read by every job after that.
#pragma once

#include "pipeline/job.h"
#include "stages/calibrate/samples.h"

namespace roundhouse {

// Those that activations start from. Collective over the world, as the next one is.
Samples calibration_samples(Job& job);
// Those that gradients are of: from the calibration's text, cut into as many shards.
Samples gradient_samples(Job& job, const Needs::Gradients& gradients);

}  // namespace roundhouse
