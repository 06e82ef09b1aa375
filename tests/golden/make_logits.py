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
import torch.nn.functional as F

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
    kind, q, kv = config["model_type"], heads * head_dim, kv_heads * head_dim
    attention_bias, mlp_bias = config.get("attention_bias", False), config.get("mlp_bias", False)
    # Name, shape and bias of each linear.
    first = [("self_attn.q_proj", q), ("self_attn.k_proj", kv), ("self_attn.v_proj", kv)]
    second = [("mlp.gate_proj", ffn), ("mlp.up_proj", ffn)]
    if kind == "phi3":
        first, second = [("self_attn.qkv_proj", q + 2 * kv)], [("mlp.gate_up_proj", 2 * ffn)]
    linears = [(name, rows, hidden, attention_bias or kind == "qwen2") for name, rows in first]
    linears += [("self_attn.o_proj", hidden, q, attention_bias)]
    linears += [(name, rows, hidden, mlp_bias) for name, rows in second]
    linears += [("mlp.down_proj", hidden, ffn, mlp_bias)]
    gemma = kind.startswith("gemma")
    norms = {"post_attention_layernorm": hidden}
    if kind != "olmo2":
        norms |= {"input_layernorm": hidden}
    if gemma or kind == "olmo2":
        norms |= {"post_feedforward_layernorm": hidden}
    if gemma:
        norms |= {"pre_feedforward_layernorm": hidden}
    if kind in ("qwen3", "gemma3_text"):
        norms |= {"self_attn.q_norm": head_dim, "self_attn.k_norm": head_dim}
    if kind == "olmo2":
        norms |= {"self_attn.q_norm": q, "self_attn.k_norm": kv}
    for i in range(config["num_hidden_layers"]):
        block = f"model.layers.{i}."
        result |= {f"{block}{name}.weight": (size,) for name, size in norms.items()}
        for name, rows, cols, biased in linears:
            result |= {f"{block}{name}.weight": (rows, cols)}
            result |= {f"{block}{name}.bias": (rows,)} if biased else {}
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


def rotary_frequencies(config, head_dim, length, layer_type=None):
    """(frequency of each pair, what cosines and sines are scaled by), from the papers' formulas."""
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    theta = config.get("rope_theta", 10000.0)
    if layer_type:  # Gemma 3: blocks of each type have their own
        rope = config["rope_parameters"][layer_type] if "rope_parameters" in config else rope
        if layer_type == "sliding_attention" and "rope_parameters" not in config:
            rope, theta = {}, config["rope_local_base_freq"]
    kind = rope.get("rope_type", rope.get("type", "default"))
    theta = rope.get("rope_theta", theta)
    dim = int(head_dim * rope.get("partial_rotary_factor", config.get("partial_rotary_factor", 1.0)))
    longest = config["max_position_embeddings"]
    trained = config.get("original_max_position_embeddings", rope.get("original_max_position_embeddings", longest))
    plain = [theta ** (-2.0 * j / dim) for j in range(dim // 2)]
    scale, result = 1.0, plain
    factor = rope.get("factor", longest / trained)
    if kind == "linear":
        result = [f / factor for f in plain]
    elif kind == "llama3":
        low, high = rope["low_freq_factor"], rope["high_freq_factor"]
        result = []
        for f in plain:
            wave = 2 * math.pi / f
            if wave < trained / high:
                result.append(f)
            elif wave > trained / low:
                result.append(f / factor)
            else:
                smooth = (trained / wave - low) / (high - low)
                result.append((1 - smooth) * f / factor + smooth * f)
    elif kind == "yarn":
        def pair(turns):
            return dim * math.log(trained / (turns * 2 * math.pi)) / (2 * math.log(theta))

        low, high = pair(rope.get("beta_fast", 32)), pair(rope.get("beta_slow", 1))
        if rope.get("truncate", True):
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, dim - 1)
        high += 0.001 if low == high else 0
        ramp = [min(1.0, max(0.0, (j - low) / (high - low))) for j in range(dim // 2)]
        result = [f / factor * r + f * (1 - r) for f, r in zip(plain, ramp)]

        def log_scale(weight):
            return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0

        both = rope.get("mscale") and rope.get("mscale_all_dim")
        scale = log_scale(rope["mscale"]) / log_scale(rope["mscale_all_dim"]) if both else log_scale(1.0)
        scale = rope.get("attention_factor") or scale
    elif kind == "longrope":
        factors = rope["long_factor" if length > trained else "short_factor"]
        result = [f / by for f, by in zip(plain, factors)]
        scale = rope.get("attention_factor") or (1.0 if factor <= 1 else math.sqrt(1 + math.log(factor) / math.log(trained)))
    else:
        assert kind in ("default", "dynamic"), kind  # dynamic is the same up to max_position_embeddings
    return torch.tensor(result, dtype=torch.float64), scale


def rotate(x, frequency, scale):
    """x [sequence, position, head, dim]; of its first columns pair (a_j, b_j) = (x_j, x_{j + half}) turned by position * frequency."""
    half = len(frequency)
    angle = torch.arange(x.shape[1], dtype=x.dtype)[:, None] * frequency
    cos, sin = scale * torch.cos(angle)[None, :, None, :], scale * torch.sin(angle)[None, :, None, :]
    a, b = x[..., :half], x[..., half : 2 * half]
    return torch.cat([a * cos - b * sin, b * cos + a * sin, x[..., 2 * half :]], dim=-1)


def capped(x, cap):
    return cap * torch.tanh(x / cap) if cap else x


def attention(q, k, v, window, scale=None, cap=None):
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
        scores = q[:, :, h] @ k[:, :, g].transpose(1, 2) * (scale or 1 / math.sqrt(q.shape[-1]))
        scores = capped(scores, cap)
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
    kind, epsilon = config["model_type"], config["rms_norm_eps"]
    sequences, length = tokens.shape
    gemma = kind.startswith("gemma")
    first_norms, last_norms, offset = kind != "olmo2", gemma or kind == "olmo2", 1.0 if gemma else 0.0
    score_scale = config.get("attention_multiplier") if kind == "granite" else None
    if gemma:
        score_scale = config["query_pre_attn_scalar"] ** -0.5
    adds = config.get("residual_multiplier", 1.0)

    embeds = config.get("embedding_multiplier", 1.0)
    if gemma:  # held in the checkpoint's type
        embeds = float(torch.tensor(config["hidden_size"] ** 0.5, dtype=getattr(torch, config["torch_dtype"])))
    x = weights["model.embed_tokens.weight"][torch.from_numpy(tokens)] * embeds
    for i in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{i}."
        layer_type = ("sliding_attention" if window_of(config, i) else "full_attention") if kind == "gemma3_text" else None
        frequency, rope_scale = rotary_frequencies(config, head_dim, length, layer_type)

        def linear(y, module):
            return y @ weights[f"{prefix}{module}.weight"].T + weights.get(f"{prefix}{module}.bias", 0.0)

        def norm(y, module):
            return rms_norm(y, offset + weights[f"{prefix}{module}.weight"], epsilon)

        def by_head(y):
            return y.reshape(sequences, length, -1, head_dim)

        def query_or_key(y, name):
            if kind == "olmo2":
                y = norm(y, f"self_attn.{name}_norm")
            y = by_head(y)
            if kind in ("qwen3", "gemma3_text"):
                y = norm(y, f"self_attn.{name}_norm")
            return rotate(y, frequency, rope_scale)

        n = norm(x, "input_layernorm") if first_norms else x
        if kind == "phi3":
            q, k, v = linear(n, "self_attn.qkv_proj").split([heads * head_dim, kv_heads * head_dim, kv_heads * head_dim], dim=-1)
        else:
            q, k, v = (linear(n, f"self_attn.{name}_proj") for name in "qkv")
        mixed = attention(query_or_key(q, "q"), query_or_key(k, "k"), by_head(v), window_of(config, i), score_scale,
                          config.get("attn_logit_softcapping"))
        added = linear(mixed.reshape(sequences, length, heads * head_dim), "self_attn.o_proj")
        x = x + adds * (norm(added, "post_attention_layernorm") if last_norms else added)

        n = norm(x, "pre_feedforward_layernorm" if gemma else "post_attention_layernorm") if first_norms else x
        if kind == "phi3":
            gate, up = linear(n, "mlp.gate_up_proj").chunk(2, dim=-1)
        else:
            gate, up = linear(n, "mlp.gate_proj"), linear(n, "mlp.up_proj")
        gate = F.gelu(gate, approximate="tanh") if gemma else gate / (1 + torch.exp(-gate))
        added = linear(gate * up, "mlp.down_proj")
        x = x + adds * (norm(added, "post_feedforward_layernorm") if last_norms else added)
    last = weights["model.norm.weight"]
    x = rms_norm(x, last if last is None else offset + last, epsilon)
    head = "model.embed_tokens.weight" if config["tie_word_embeddings"] else "lm_head.weight"
    return capped(x @ weights[head].T / config.get("logits_scaling", 1.0), config.get("final_logit_softcapping"))


def window_of(config, block):
    """The sliding window of a block's attention, or None."""
    if config["model_type"] in ("mistral", "phi3"):
        return config.get("sliding_window")
    if config["model_type"].startswith("gemma"):
        types, pattern = config.get("layer_types"), config.get("sliding_window_pattern", 2)
        has = types[block] == "sliding_attention" if types else (block + 1) % pattern != 0
        return config["sliding_window"] if has else None
    if not config.get("use_sliding_window", False):
        return None
    types = config.get("layer_types")
    has = types[block] == "sliding_attention" if types else block >= config["max_window_layers"]
    return config["sliding_window"] if has else None


# ------------------------------------------------------------------------------------------------------- the models


def config_of(kind, **keys):
    names = {"llama": "Llama", "mistral": "Mistral", "qwen2": "Qwen2", "qwen3": "Qwen3", "phi3": "Phi3", "olmo2": "Olmo2",
             "granite": "Granite", "gemma2": "Gemma2", "gemma3_text": "Gemma3"}
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
        "architectures": [names[kind] + "ForCausalLM"],
        "model_type": kind,
        "hidden_act": "silu",
        "max_position_embeddings": 64,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    if kind.startswith("gemma"):
        base = base | {"hidden_activation": "gelu_pytorch_tanh", "pad_token_id": 0, "tie_word_embeddings": True}
        del base["hidden_act"]
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
def small(kind, **keys):
    """A small model of the LLaMA kind."""
    shared = dict(hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
                  vocab_size=96, rms_norm_eps=1e-5, tie_word_embeddings=False, torch_dtype="float32")
    return dict(dtype="F32", shards=1, length=48, config=config_of(kind, **(shared | keys)))


# Architectures and rotations, each with the keys that its published models have.
MODELS |= {
    # Biases in every linear, as no published LLaMA has them but forks do.
    "llama-biases": small("llama", attention_bias=True, mlp_bias=True, rope_theta=10000.0),
    "llama3": small("llama", max_position_embeddings=128, rope_theta=500.0, rope_scaling=dict(
        factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=32, rope_type="llama3")),
    # As transformers 5 writes it.
    "llama3-parameters": small("llama", head_dim=24, rope_parameters=dict(
        rope_theta=100.0, factor=4.0, low_freq_factor=0.5, high_freq_factor=2.0, original_max_position_embeddings=64,
        rope_type="llama3")),
    "rope-linear": small("llama", rope_theta=10000.0, rope_scaling=dict(type="linear", factor=4.0)),
    "rope-dynamic": small("llama", rope_theta=10000.0, rope_scaling=dict(type="dynamic", factor=2.0)),
    "rope-yarn": small("qwen2", rope_theta=1000.0, max_position_embeddings=64, rope_scaling=dict(
        type="yarn", factor=4.0, original_max_position_embeddings=16, beta_fast=4.0, beta_slow=0.5)),
    # As gpt-oss and others have it: no whole pairs, and two scales.
    "rope-yarn-scales": small("llama", rope_parameters=dict(
        rope_theta=1000.0, rope_type="yarn", factor=8.0, original_max_position_embeddings=8, beta_fast=8.0, beta_slow=1.0,
        truncate=False, mscale=1.0, mscale_all_dim=0.5)),
    "mistral-no-window": small("mistral", rope_theta=1e6, head_dim=32, sliding_window=None),
    "qwen2": small("qwen2", rope_theta=1e6, use_sliding_window=False, sliding_window=8, max_window_layers=1,
                   tie_word_embeddings=True),
    "qwen2-window": small("qwen2", rope_theta=1e6, use_sliding_window=True, sliding_window=8, max_window_layers=1),
    "qwen3": small("qwen3", rope_theta=1e6, head_dim=32),
    "phi3": small("phi3", num_key_value_heads=4, rope_theta=10000.0, sliding_window=20, pad_token_id=0),
    # As Phi-4-mini: parts of heads are rotated, and the texts are longer, or not, than those of the first training.
    "phi3-long": small("phi3", rope_theta=10000.0, head_dim=16, partial_rotary_factor=0.75, original_max_position_embeddings=32,
                       pad_token_id=0, rope_scaling=dict(
                           type="longrope", short_factor=[1.0, 1.1, 1.2, 1.3, 1.4, 1.5], long_factor=[1.0, 2.0, 3.0, 4.0, 6.0, 9.0])),
    "olmo2": small("olmo2", rope_theta=500000.0, pad_token_id=0),
    "granite": small("granite", rope_theta=10000.0, attention_multiplier=0.125, residual_multiplier=0.5,
                     embedding_multiplier=3.0, logits_scaling=2.0),
    # A window in two of three blocks, which turn by a base of their own; the others' turns are stretched. As older configs have
    # it, and as transformers 5 writes it.
    "gemma3": small("gemma3_text", hidden_size=48, num_hidden_layers=3, tie_word_embeddings=True, head_dim=24,
                    query_pre_attn_scalar=20, sliding_window=6, sliding_window_pattern=3, rope_theta=1000.0,
                    rope_local_base_freq=100.0, rope_scaling=dict(rope_type="linear", factor=4.0)),
    "gemma3-parameters": small("gemma3_text", num_hidden_layers=3, tie_word_embeddings=True, head_dim=16,
                               query_pre_attn_scalar=16, sliding_window=6,
                               layer_types=["full_attention", "sliding_attention", "sliding_attention"],
                               final_logit_softcapping=20.0, rope_parameters=dict(
                                   full_attention=dict(rope_type="default", rope_theta=1000.0),
                                   sliding_attention=dict(rope_type="default", rope_theta=100.0))),
    # Caps that scores and logits meet; the embedding's factor in bfloat16, 6.9375.
    "gemma2": small("gemma2", hidden_size=48, num_hidden_layers=3, tie_word_embeddings=True, torch_dtype="bfloat16", head_dim=32,
                    query_pre_attn_scalar=20, sliding_window=6, rope_theta=10000.0, attn_logit_softcapping=2.0,
                    final_logit_softcapping=30.0),
}
MODELS["gemma2"] |= dict(dtype="BF16")
MODELS["phi3-short"] = MODELS["phi3-long"] | dict(length=32)
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
    config = config | {"torch_dtype": "float32"}  # in which transformers makes its factors
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
