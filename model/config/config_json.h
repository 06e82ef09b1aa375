// A config.json that read_model_config() reads as the config that it is made from.
#pragma once

#include <string>

#include "model/model_config.h"

namespace roundhouse {

std::string config_json(const ModelConfig& config);

}  // namespace roundhouse
