#include "model/config/families.h"

#include <array>
#include <string>

#include "base/quote.h"

namespace roundhouse {

std::span<const Family> families() {
  static constexpr std::array<Family, 10> kFamilies = {{
      {Architecture::kLlama, "llama", "LlamaForCausalLM", read_llama_kind},
      {Architecture::kMistral, "mistral", "MistralForCausalLM", read_llama_kind},
      {Architecture::kQwen2, "qwen2", "Qwen2ForCausalLM", read_llama_kind},
      {Architecture::kQwen3, "qwen3", "Qwen3ForCausalLM", read_llama_kind},
      {Architecture::kPhi3, "phi3", "Phi3ForCausalLM", read_llama_kind},
      {Architecture::kOlmo2, "olmo2", "Olmo2ForCausalLM", read_llama_kind},
      {Architecture::kGranite, "granite", "GraniteForCausalLM", read_llama_kind},
      {Architecture::kGemma2, "gemma2", "Gemma2ForCausalLM", read_llama_kind},
      {Architecture::kGemma3, "gemma3_text", "Gemma3ForCausalLM", read_llama_kind},
      {Architecture::kOpt, "opt", "OPTForCausalLM", read_opt},
  }};
  return kFamilies;
}

void require_activation(const ConfigKeys& keys, const char* key, const char* supported) {
  const auto activation = keys.string(key);
  if (activation && *activation != supported) {
    keys.fail(key, in_quotes(*activation) + " is not supported (" + supported + " is)");
  }
}

}  // namespace roundhouse
