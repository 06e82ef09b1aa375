// Rotary frequencies as config.json describes them. Three spellings: "rope_theta" beside "rope_scaling" (null, or an object whose
// "rope_type" was once called "type"), or both inside "rope_parameters".
#pragma once

#include "model/config/config_keys.h"
#include "model/rope.h"

namespace roundhouse {

struct RopeDefaults {
  double theta = 10000.0;
  bool may_be_partial = false;  // partial_rotary_factor below 1
  // "original_max_position_embeddings" where the config has none; 0: max_position_embeddings
  std::int64_t original_positions = 0;
};

// What a config says of blocks of one type (Gemma 3): "rope_parameters" has an object for each type; in older configs the key
// `theta` stands for it, beside "rope_scaling", which is of full attention.
struct RopeOfType {
  const char* type;   // "full_attention", "sliding_attention"
  const char* theta;  // "rope_theta", "rope_local_base_freq"
};

// Throws InputError naming the first key that is not understood: the type before the type's own keys.
RopeConfig read_rope(const ConfigKeys& keys, std::int64_t head_dim, std::int64_t max_positions,
                     const RopeDefaults& defaults);
RopeConfig read_rope_of_type(const ConfigKeys& keys, const RopeOfType& of, std::int64_t head_dim,
                             std::int64_t max_positions, const RopeDefaults& defaults);

}  // namespace roundhouse
