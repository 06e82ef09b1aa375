// Files of llama.cpp: tensors under its names, and keys that say what model it is and hold its tokenizer.
#pragma once

#include "model/checkpoint/gguf.h"
#include "stages/export/container.h"

namespace roundhouse {

std::unique_ptr<Container> make_gguf_container(const ExportedModel& exported);
// Throws InputError naming file and key for what llama.cpp's architecture "llama" or its tokenizers cannot be told.
void check_gguf_model(const ExportedModel& exported);

// The keys of a model's tokenizer: tokenizer.model of SentencePiece, else tokenizer.json or vocab.json of byte-level BPE whose words are
// cut as one of llama.cpp's pre-tokenizers cuts them. `vocabulary`: rows of the embedding, each of which gets a token. Throws InputError.
void add_tokenizer_keys(const std::filesystem::path& directory, std::int64_t vocabulary,
                        GgufKeys& keys);

}  // namespace roundhouse
