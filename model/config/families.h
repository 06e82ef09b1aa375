// The architectures that are read, and what the config.json of each family of them says.
#pragma once

#include <span>
#include <string_view>

#include "model/config/config_keys.h"
#include "model/model_config.h"

namespace roundhouse {

struct Family {
  Architecture architecture;
  std::string_view model_type;
  std::string_view class_name;
  // The architecture and the sizes that all have are read already.
  void (*read)(const ConfigKeys& keys, ModelConfig& config);
};
std::span<const Family> families();

// LLaMA, and what differs from it by the presence of a few things.
void read_llama_kind(const ConfigKeys& keys, ModelConfig& config);
void read_opt(const ConfigKeys& keys, ModelConfig& config);

// Throws InputError where the key is there and names another activation.
void require_activation(const ConfigKeys& keys, const char* key, const char* supported);

}  // namespace roundhouse
