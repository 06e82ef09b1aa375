// The characters that stand for bytes in the vocabularies of GPT-2 (Radford et al. 2019, "Language Models are Unsupervised
// Multitask Learners") and of all byte-level BPE since.
#pragma once

#include <array>
#include <string>

namespace roundhouse {

// In UTF-8, of each byte: itself if it can be seen in Latin-1, else one from U+0100 on.
const std::array<std::string, 256>& characters_of_bytes();

}  // namespace roundhouse
