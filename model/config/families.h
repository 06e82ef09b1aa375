// What the config.json of each family of architectures says. The architecture and the sizes that all have are read already.
#pragma once

#include "model/config/config_keys.h"
#include "model/model_config.h"

namespace roundhouse {

// LLaMA, and what differs from it by the presence of a few things.
void read_llama_kind(const ConfigKeys& keys, ModelConfig& config);
void read_opt(const ConfigKeys& keys, ModelConfig& config);

// Throws InputError where the key is there and names another activation.
void require_activation(const ConfigKeys& keys, const char* key, const char* supported);

}  // namespace roundhouse
