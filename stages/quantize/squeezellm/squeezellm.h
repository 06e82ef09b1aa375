// SqueezeLLM (Kim et al. 2024): each row's weights become codes into a table of 2^bits values of its own, found by k-means in one
// dimension where a weight counts with its Fisher information, a sum over calibration sequences of the loss's squared
// gradient.
//
// With `sparse`, weights that a table would serve badly are kept beside it, as a sparse matrix: of each matrix the most
// sensitive ones (`sensitive`, percent), and those far outside its quartiles, by one factor for the whole model, with which
// `outliers` percent of all its weights are. As with the authors, quartiles and factor follow from the weights alone, and weights
// that are both count for both shares. They stand for nothing in k-means.
//
// Tables are chosen while a block's gradients are there (needs.h), so blocks do not wait for those before them. `error`: sum
// (w - value)² / 2, relative to sum w² / 2; `weighted_error`: sum of Fisher (w - table value)² of what is in the tables.
#pragma once

#include <memory>

#include "stages/quantize/method.h"
#include "stages/quantize/options.h"

namespace roundhouse {

std::unique_ptr<Method> make_squeezellm(OptionReader& options);

}  // namespace roundhouse
