"""Golden logits of decoder-only models, from the formulas, in float64.

    python3 make_logits.py            writes logits.json beside this file
    python3 make_logits.py --check    compares this program with transformers, model by model

Needs torch and numpy (and, for --check, transformers). Everything of a model follows from its config and a formula, so
that the C++ test (tests/model/golden_logits_test.cpp) makes the same model without a file; tiny-world is read from
tests/data. The forward pass below shares no code with either.
"""

import json
import math
import pathlib
import struct
import sys

import numpy as np
import torch

HERE = pathlib.Path(__file__).resolve().parent
TINY_WORLD = HERE.parent / "data" / "tiny-world"
MASK = (1 << 64) - 1


# ---------------------------------------------------------------------------------------------- the weights' formula


def fnv1a(text):
    h = 0xCBF29CE484222325
    for byte in text.encode():
        h = ((h ^ byte) * 0x100000001B3) & MASK
    return h


def mix(z):
    """The output function of SplitMix64, on an array of uint64."""
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def integers(name, count):
    """count integers of -128..127: so few bits that a weight is exact in float32, float16 and bfloat16."""
    i = np.arange(1, count + 1, dtype=np.uint64)
    z = np.uint64(fnv1a(name)) + i * np.uint64(0x9E3779B97F4A7C15)
    return (mix(z) >> np.uint64(56)).astype(np.int64) - 128


def formula_weight(name, shape):
    k = integers(name, math.prod(shape)).astype(np.float64)
    if "norm" in name:
        values = 1 + np.floor(k / 2) / 128  # 0.5 .. 1.5
    elif "embed_tokens" in name:
        values = k / 2**7
    else:
        values = k / 2**9
    return torch.from_numpy(values.reshape(shape))


def formula_tokens(name, sequences, length, vocabulary):
    i = np.arange(1, sequences * length + 1, dtype=np.uint64)
    z = mix(np.uint64(fnv1a(name + " tokens")) + i * np.uint64(0x9E3779B97F4A7C15))
    return (z % np.uint64(vocabulary)).astype(np.int64).reshape(sequences, length)


def opt_shapes(config):
    hidden, ffn, vocabulary = config["hidden_size"], config["ffn_dim"], config["vocab_size"]
    width = config.get("word_embed_proj_dim", hidden)
    result = {
        "model.decoder.embed_tokens.weight": (vocabulary, width),
        "model.decoder.embed_positions.weight": (config["max_position_embeddings"] + 2, hidden),
    }
    if width != hidden:
        result |= {"model.decoder.project_in.weight": (hidden, width), "model.decoder.project_out.weight": (width, hidden)}
    norms, linears = [], {}
    if config["do_layer_norm_before"] and not config.get("_remove_final_layer_norm", False):
        norms.append("model.decoder.final_layer_norm")
    for i in range(config["num_hidden_layers"]):
        block = f"model.decoder.layers.{i}."
        norms += [block + "self_attn_layer_norm", block + "final_layer_norm"]
        linears |= {block + f"self_attn.{name}_proj": (hidden, hidden) for name in ("q", "k", "v", "out")}
        linears |= {block + "fc1": (ffn, hidden), block + "fc2": (hidden, ffn)}
    result |= {name + ".weight": shape for name, shape in linears.items()}
    if config.get("enable_bias", True):
        result |= {name + ".bias": shape[:1] for name, shape in linears.items()}
    if config.get("layer_norm_elementwise_affine", True):
        result |= {f"{name}.{part}": (hidden,) for name in norms for part in ("weight", "bias")}
    if not config.get("tie_word_embeddings", True):
        result["lm_head.weight"] = (vocabulary, width)
    return result


def shapes(config):
    if config["model_type"] == "opt":
        return opt_shapes(config)
    hidden, ffn = config["hidden_size"], config["intermediate_size"]
    heads = config["num_attention_heads"]
    kv_heads = config.get("num_key_value_heads") or heads
    head_dim = config.get("head_dim") or hidden // heads
    result = {"model.embed_tokens.weight": (config["vocab_size"], hidden), "model.norm.weight": (hidden,)}
    if not config["tie_word_embeddings"]:
        result["lm_head.weight"] = (config["vocab_size"], hidden)
    for i in range(config["num_hidden_layers"]):
        block = f"model.layers.{i}."
        result |= {
            block + "input_layernorm.weight": (hidden,),
            block + "post_attention_layernorm.weight": (hidden,),
            block + "self_attn.q_proj.weight": (heads * head_dim, hidden),
            block + "self_attn.k_proj.weight": (kv_heads * head_dim, hidden),
            block + "self_attn.v_proj.weight": (kv_heads * head_dim, hidden),
            block + "self_attn.o_proj.weight": (hidden, heads * head_dim),
            block + "mlp.gate_proj.weight": (ffn, hidden),
            block + "mlp.up_proj.weight": (ffn, hidden),
            block + "mlp.down_proj.weight": (hidden, ffn),
        }
    return result


def read_safetensors(path):
    data = path.read_bytes()
    (n,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + n])
    weights = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        assert entry["dtype"] == "F16"
        begin, end = entry["data_offsets"]
        array = np.frombuffer(data[8 + n + begin : 8 + n + end], dtype=np.float16).reshape(entry["shape"])
        weights[name] = torch.from_numpy(array.astype(np.float64))
    return weights


# ------------------------------------------------------------------------------------------------- the forward pass


def rms_norm(x, weight, epsilon):
    return x / torch.sqrt((x * x).mean(dim=-1, keepdim=True) + epsilon) * weight


def rotate(x, theta):
    """x [sequence, position, head, dim]; pair (a_j, b_j) = (x_j, x_{j + dim/2}) turned by position * theta^(-2j/dim)."""
    dim = x.shape[-1]
    half = dim // 2
    frequency = theta ** (-2.0 * torch.arange(half, dtype=x.dtype) / dim)
    angle = torch.arange(x.shape[1], dtype=x.dtype)[:, None] * frequency
    cos, sin = torch.cos(angle)[None, :, None, :], torch.sin(angle)[None, :, None, :]
    a, b = x[..., :half], x[..., half:]
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)


def attention(q, k, v, window):
    """q [s, t, heads, dim], k and v [s, t, kv_heads, dim]; head h reads key/value head h / (heads / kv_heads)."""
    length, heads = q.shape[1], q.shape[2]
    out = torch.zeros_like(q)
    i = torch.arange(length)[:, None]
    j = torch.arange(length)[None, :]
    hidden = j > i
    if window:
        hidden = hidden | (j <= i - window)
    for h in range(heads):
        g = h // (heads // k.shape[2])
        scores = q[:, :, h] @ k[:, :, g].transpose(1, 2) / math.sqrt(q.shape[-1])
        out[:, :, h] = torch.softmax(scores.masked_fill(hidden, -math.inf), dim=-1) @ v[:, :, g]
    return out


def layer_norm(x, weights, module):
    """In a model whose norms have no weights they are 1 and 0."""
    d = x - x.mean(dim=-1, keepdim=True)
    y = d / torch.sqrt((d * d).mean(dim=-1, keepdim=True) + 1e-5)
    return y * weights.get(module + ".weight", 1.0) + weights.get(module + ".bias", 0.0)


def opt_block(config, weights, prefix, x):
    """x [sequence, position, hidden]"""
    sequences, length, hidden = x.shape
    heads, first = config["num_attention_heads"], config["do_layer_norm_before"]

    def linear(y, module):
        return y @ weights[f"{prefix}{module}.weight"].T + weights.get(f"{prefix}{module}.bias", 0.0)

    def half(x, norm, function):
        norm = prefix + norm
        return x + function(layer_norm(x, weights, norm)) if first else layer_norm(x + function(x), weights, norm)

    def attend(n):
        q, k, v = (linear(n, f"self_attn.{m}_proj").reshape(sequences, length, heads, hidden // heads) for m in "qkv")
        return linear(attention(q, k, v, None).reshape(sequences, length, hidden), "self_attn.out_proj")

    x = half(x, "self_attn_layer_norm", attend)
    return half(x, "final_layer_norm", lambda m: linear(torch.clamp(linear(m, "fc1"), min=0), "fc2"))


def opt_forward(config, weights, tokens):
    decoder = "model.decoder."
    x = weights[decoder + "embed_tokens.weight"][torch.from_numpy(tokens)]
    if decoder + "project_in.weight" in weights:
        x = x @ weights[decoder + "project_in.weight"].T
    x = x + weights[decoder + "embed_positions.weight"][2 : 2 + tokens.shape[1]]  # the first two rows are never used
    for i in range(config["num_hidden_layers"]):
        x = opt_block(config, weights, f"{decoder}layers.{i}.", x)
    if config["do_layer_norm_before"] and not config.get("_remove_final_layer_norm", False):
        x = layer_norm(x, weights, decoder + "final_layer_norm")
    if decoder + "project_out.weight" in weights:
        x = x @ weights[decoder + "project_out.weight"].T
    return x @ weights.get("lm_head.weight", weights[decoder + "embed_tokens.weight"]).T


def forward(config, weights, tokens):
    if config["model_type"] == "opt":
        return opt_forward(config, weights, tokens)
    heads = config["num_attention_heads"]
    kv_heads = config.get("num_key_value_heads") or heads
    head_dim = config.get("head_dim") or config["hidden_size"] // heads
    theta, epsilon = config["rope_theta"], config["rms_norm_eps"]
    window = config.get("sliding_window") if config["model_type"] == "mistral" else None
    sequences, length = tokens.shape

    x = weights["model.embed_tokens.weight"][torch.from_numpy(tokens)]
    for i in range(config["num_hidden_layers"]):

        def linear(y, module):
            return y @ weights[f"model.layers.{i}.{module}.weight"].T

        n = rms_norm(x, weights[f"model.layers.{i}.input_layernorm.weight"], epsilon)
        q = rotate(linear(n, "self_attn.q_proj").reshape(sequences, length, heads, head_dim), theta)
        k = rotate(linear(n, "self_attn.k_proj").reshape(sequences, length, kv_heads, head_dim), theta)
        v = linear(n, "self_attn.v_proj").reshape(sequences, length, kv_heads, head_dim)
        mixed = attention(q, k, v, window).reshape(sequences, length, heads * head_dim)
        x = x + linear(mixed, "self_attn.o_proj")
        n = rms_norm(x, weights[f"model.layers.{i}.post_attention_layernorm.weight"], epsilon)
        gate = linear(n, "mlp.gate_proj")
        x = x + linear(gate / (1 + torch.exp(-gate)) * linear(n, "mlp.up_proj"), "mlp.down_proj")
    x = rms_norm(x, weights["model.norm.weight"], epsilon)
    head = "model.embed_tokens.weight" if config["tie_word_embeddings"] else "lm_head.weight"
    return x @ weights[head].T


# ------------------------------------------------------------------------------------------------------- the models


def config_of(kind, **keys):
    names = {"llama": "LlamaForCausalLM", "mistral": "MistralForCausalLM"}
    if kind == "opt":
        return {
            "architectures": ["OPTForCausalLM"],
            "model_type": "opt",
            "activation_function": "relu",
            "max_position_embeddings": 64,
            "bos_token_id": 2,
            "eos_token_id": 2,
            "pad_token_id": 1,
        } | keys
    base = {
        "architectures": [names[kind]],
        "model_type": kind,
        "hidden_act": "silu",
        "max_position_embeddings": 64,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    return base | keys


MODELS = {
    # Full multi-head attention, tied embeddings, float32 weights.
    "mha-tied": dict(
        dtype="F32",
        shards=1,
        length=24,
        config=config_of(
            "llama",
            hidden_size=64,
            intermediate_size=96,
            num_hidden_layers=2,
            num_attention_heads=4,
            vocab_size=96,
            rms_norm_eps=1e-6,
            rope_theta=10000.0,
            tie_word_embeddings=True,
            torch_dtype="float32",
        ),
    ),
    # Grouped queries, theta of Mistral v0.2, head_dim that is not hidden / heads, bfloat16 in three shards.
    "gqa-sharded": dict(
        dtype="BF16",
        shards=3,
        length=40,
        config=config_of(
            "llama",
            hidden_size=64,
            intermediate_size=160,
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=32,
            vocab_size=128,
            rms_norm_eps=1e-5,
            rope_theta=1e6,
            tie_word_embeddings=False,
            torch_dtype="bfloat16",
        ),
    ),
    # A window of 5 in sequences of 33 tokens; four query heads share each key/value head.
    "sliding-window": dict(
        dtype="F16",
        shards=1,
        length=33,
        config=config_of(
            "mistral",
            hidden_size=128,
            intermediate_size=192,
            num_hidden_layers=3,
            num_attention_heads=8,
            num_key_value_heads=2,
            vocab_size=100,
            rms_norm_eps=1e-5,
            rope_theta=10000.0,
            sliding_window=5,
            tie_word_embeddings=False,
            torch_dtype="float16",
        ),
    ),
    # As opt-125m and those from 1.3b on: norms first, biases everywhere, tied head; as many tokens as there are positions.
    "opt": dict(
        dtype="F16",
        shards=1,
        length=64,
        config=config_of(
            "opt",
            hidden_size=64,
            ffn_dim=96,
            num_hidden_layers=3,
            num_attention_heads=4,
            vocab_size=96,
            do_layer_norm_before=True,
            word_embed_proj_dim=64,
            torch_dtype="float16",
        ),
    ),
    # As opt-350m: norms after the sums, no final one, embeddings narrower than the blocks.
    "opt-norm-last": dict(
        dtype="F32",
        shards=2,
        length=21,
        config=config_of(
            "opt",
            hidden_size=64,
            ffn_dim=128,
            num_hidden_layers=3,
            num_attention_heads=2,
            vocab_size=80,
            do_layer_norm_before=False,
            word_embed_proj_dim=32,
            torch_dtype="float32",
        ),
    ),
    # What the config allows besides: no biases, norms without weights, an untied head, an odd width of heads.
    "opt-bare": dict(
        dtype="BF16",
        shards=1,
        length=20,
        config=config_of(
            "opt",
            hidden_size=60,
            ffn_dim=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            vocab_size=64,
            do_layer_norm_before=True,
            enable_bias=False,
            layer_norm_elementwise_affine=False,
            tie_word_embeddings=False,
            torch_dtype="bfloat16",
        ),
    ),
    # Without the last norm: made before transformers 4.20.1.
    "opt-no-final-norm": dict(
        dtype="F16",
        shards=1,
        length=12,
        config=config_of(
            "opt",
            hidden_size=32,
            ffn_dim=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            vocab_size=64,
            do_layer_norm_before=True,
            _remove_final_layer_norm=True,
            torch_dtype="float16",
        ),
    ),
    # Read from bin/, where make_bin.py writes them as PyTorch does: named as in the first files of OPT, and in two shards.
    "opt-bin": dict(
        directory="bin/opt",
        length=16,
        config=config_of(
            "opt",
            hidden_size=16,
            ffn_dim=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            vocab_size=32,
            max_position_embeddings=16,
            do_layer_norm_before=True,
            torch_dtype="float16",
        ),
    ),
    "mistral-bin-sharded": dict(
        directory="bin/mistral",
        length=16,
        config=config_of(
            "mistral",
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            vocab_size=32,
            rms_norm_eps=1e-5,
            rope_theta=10000.0,
            sliding_window=3,
            tie_word_embeddings=False,
            torch_dtype="bfloat16",
        ),
    ),
}
SEQUENCES = 2


def build(name):
    """(config, weights, tokens) of one model."""
    if name == "tiny-world":
        config = json.loads((TINY_WORLD / "config.json").read_text())
        tokens = formula_tokens(name, SEQUENCES, 200, config["vocab_size"])
        return config, read_safetensors(TINY_WORLD / "model.safetensors"), tokens
    model = MODELS[name]
    weights = {tensor: formula_weight(tensor, shape) for tensor, shape in shapes(model["config"]).items()}
    tokens = formula_tokens(name, SEQUENCES, model["length"], model["config"]["vocab_size"])
    return model["config"], weights, tokens


def golden(name):
    config, weights, tokens = build(name)
    logits = forward(config, weights, tokens)
    vocabulary, length = config["vocab_size"], tokens.shape[1]
    positions = sorted({0, 1, 4, 5, 6, length // 2, length - 2, length - 1})
    ids = sorted({0, 1, 2, vocabulary // 3, vocabulary // 2, vocabulary - 2, vocabulary - 1})
    entry = {k: v for k, v in MODELS.get(name, {}).items() if k in ("config", "dtype", "shards", "directory")}
    print(f"{name}: logits up to {logits.abs().max():.2f}")
    return entry | {
        "sequences": SEQUENCES,
        "length": length,
        "positions": positions,
        "ids": ids,
        # [sequence][position][id], and the logarithm of the sum of exp over the whole row, which no logit escapes
        "logits": [[[round(float(logits[s, p, v]), 7) for v in ids] for p in positions] for s in range(SEQUENCES)],
        "log_sum_exp": [[round(float(torch.logsumexp(logits[s, p], 0)), 7) for p in positions] for s in range(SEQUENCES)],
    }


def check_against_transformers(name):
    import transformers

    config, weights, tokens = build(name)
    cls = getattr(transformers, config["architectures"][0])
    keys = {k: v for k, v in config.items() if k not in ("architectures", "model_type", "torch_dtype")}
    model = cls(cls.config_class(**keys, attn_implementation="eager")).double()
    state = dict(weights)
    if "lm_head.weight" not in state:
        embedding = "model.decoder.embed_tokens" if config["model_type"] == "opt" else "model.embed_tokens"
        state["lm_head.weight"] = state[embedding + ".weight"]
    model.load_state_dict(state)
    model.eval()  # OPT has dropout
    with torch.no_grad():
        theirs = model(torch.from_numpy(tokens)).logits.double()
    ours = forward(config, weights, tokens)
    print(f"{name}: largest difference to transformers {transformers.__version__} "
          f"{float((ours - theirs).abs().max()):.2e}, logits up to {float(ours.abs().max()):.2f}")


def main():
    names = ["tiny-world", *MODELS]
    if "--check" in sys.argv:
        for name in names:
            check_against_transformers(name)
        return
    models = {name: golden(name) for name in names}
    (HERE / "logits.json").write_text(json.dumps(models, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()
