"""Small random models of each architecture, as Hugging Face directories written with nothing but Python's own library."""
import array
import json
import math
import pathlib
import random
import shutil
import struct

HIDDEN, FFN, HEADS, BLOCKS = 64, 128, 4, 3


def write_safetensors(path, shapes, seed):
    """Float32, normal with a spread of 1 / sqrt(inputs), a few columns far above the rest; norms about 1, biases small."""
    source = random.Random(seed)
    header, pieces, at = {}, [], 0
    for name, shape in shapes.items():
        cols = shape[-1]
        if "norm" in name and name.endswith(".weight"):
            values = [1 + 0.1 * source.gauss(0, 1) for _ in range(cols)]
        elif len(shape) == 1:
            values = [0.02 * source.gauss(0, 1) for _ in range(cols)]
        else:
            outlier = [5.0 if source.random() < 0.03 else 1.0 for _ in range(cols)]
            values = [source.gauss(0, 1) / math.sqrt(cols) * outlier[i % cols] for i in range(math.prod(shape))]
        data = array.array("f", values).tobytes()
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [at, at + len(data)]}
        pieces.append(data)
        at += len(data)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"".join(pieces))


def write_mistral(folder, source):
    """Grouped queries and a window shorter than the sequences; the bundled model's tokenizer."""
    folder.mkdir(parents=True)
    vocabulary, kv = 1024, HIDDEN // 2
    (folder / "config.json").write_text(json.dumps({
        "architectures": ["MistralForCausalLM"], "model_type": "mistral", "hidden_size": HIDDEN, "intermediate_size": FFN,
        "num_hidden_layers": BLOCKS, "num_attention_heads": HEADS, "num_key_value_heads": HEADS // 2, "vocab_size": vocabulary,
        "max_position_embeddings": 256, "sliding_window": 24, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "hidden_act": "silu",
        "tie_word_embeddings": False, "bos_token_id": 1, "eos_token_id": 2, "torch_dtype": "float32"}))
    shapes = {"model.embed_tokens.weight": (vocabulary, HIDDEN), "model.norm.weight": (HIDDEN,), "lm_head.weight": (vocabulary, HIDDEN)}
    for block in range(BLOCKS):
        p = f"model.layers.{block}."
        shapes |= {p + "input_layernorm.weight": (HIDDEN,), p + "post_attention_layernorm.weight": (HIDDEN,),
                   p + "self_attn.q_proj.weight": (HIDDEN, HIDDEN), p + "self_attn.k_proj.weight": (kv, HIDDEN),
                   p + "self_attn.v_proj.weight": (kv, HIDDEN), p + "self_attn.o_proj.weight": (HIDDEN, HIDDEN),
                   p + "mlp.gate_proj.weight": (FFN, HIDDEN), p + "mlp.up_proj.weight": (FFN, HIDDEN),
                   p + "mlp.down_proj.weight": (HIDDEN, FFN)}
    write_safetensors(folder / "model.safetensors", shapes, seed=11)
    for name in ("tokenizer.model", "tokenizer_config.json"):
        shutil.copy(source / "tests/data/tiny-world" / name, folder / name)


def write_opt(folder, source):
    """Norms before, biases, tied head; byte-level BPE."""
    folder.mkdir(parents=True)
    tokenizer = source / "tests/golden/tokenizer/bpe"
    for name in ("vocab.json", "merges.txt", "tokenizer_config.json"):
        shutil.copy(tokenizer / name, folder / name)
    vocabulary = max(json.loads((tokenizer / "vocab.json").read_text()).values()) + 1
    (folder / "config.json").write_text(json.dumps({
        "architectures": ["OPTForCausalLM"], "model_type": "opt", "hidden_size": HIDDEN, "ffn_dim": FFN, "num_hidden_layers": BLOCKS,
        "num_attention_heads": HEADS, "vocab_size": vocabulary, "max_position_embeddings": 256, "do_layer_norm_before": True,
        "enable_bias": True, "word_embed_proj_dim": HIDDEN, "activation_function": "relu", "tie_word_embeddings": True,
        "bos_token_id": 2, "eos_token_id": 2, "torch_dtype": "float32"}))
    p = "model.decoder."
    shapes = {p + "embed_tokens.weight": (vocabulary, HIDDEN), p + "embed_positions.weight": (258, HIDDEN),
              p + "final_layer_norm.weight": (HIDDEN,), p + "final_layer_norm.bias": (HIDDEN,)}
    for block in range(BLOCKS):
        p = f"model.decoder.layers.{block}."
        for norm in ("self_attn_layer_norm", "final_layer_norm"):
            shapes |= {p + norm + ".weight": (HIDDEN,), p + norm + ".bias": (HIDDEN,)}
        for name, rows, cols in (("self_attn.q_proj", HIDDEN, HIDDEN), ("self_attn.k_proj", HIDDEN, HIDDEN),
                                 ("self_attn.v_proj", HIDDEN, HIDDEN), ("self_attn.out_proj", HIDDEN, HIDDEN),
                                 ("fc1", FFN, HIDDEN), ("fc2", HIDDEN, FFN)):
            shapes |= {p + name + ".weight": (rows, cols), p + name + ".bias": (rows,)}
    write_safetensors(folder / "model.safetensors", shapes, seed=12)


MODELS = {"mistral": write_mistral, "opt": write_opt}
