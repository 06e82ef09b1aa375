"""Golden gradients from PyTorch's autograd, in float64.

    python3 make_gradients.py         writes gradients.json beside this file

Needs torch and numpy. "kernels": operands and gradients of each operation with a backward kernel, by torch's own functions
(tests/kernels/gradients_test.cpp). "blocks": gradients of a whole decoder block whose weights follow from a formula
(tests/model/decoder_block_gradient_test.cpp), by the forward pass of make_logits.py.
"""

import json
import math
import pathlib

import torch
import torch.nn.functional as F

import make_logits
from make_logits import formula_weight, integers

HERE = pathlib.Path(__file__).resolve().parent


def operand(name, *shape, scale=64):
    """Numbers that float32 holds exactly, and JSON in few digits."""
    values = torch.from_numpy(integers(name, math.prod(shape)).astype("float64")).reshape(shape) / scale
    return values.requires_grad_()


def listed(tensor):
    tensor = tensor.detach()
    return {"rows": tensor.shape[0], "cols": tensor.shape[1], "values": [float(f"{v:.9g}") for v in tensor.flatten()]}


def case(y, dy, **operands):
    """Operands, output and the gradient of each operand of an operation whose output has the gradient dy."""
    y.backward(dy.detach())
    entry = {name: listed(value) for name, value in operands.items()}
    entry |= {"d_" + name: listed(value.grad) for name, value in operands.items() if value.grad is not None}
    return entry | {"y": listed(y), "dy": listed(dy)}


def norms():
    x, dy = operand("x", 3, 11), operand("dy", 3, 11)
    weight, bias = operand("weight", 1, 11), operand("bias", 1, 11)
    rms = case(F.rms_norm(x, (11,), weight[0], eps=1e-5), dy, x=x, weight=weight)
    x, weight = operand("x", 3, 11), operand("weight", 1, 11)
    layer = case(F.layer_norm(x, (11,), weight[0], bias[0], eps=1e-5), dy, x=x, weight=weight, bias=bias)
    return rms | {"epsilon": 1e-5}, layer | {"epsilon": 1e-5}


def attention(window, cap=0.0):
    sequences, length, heads, kv_heads, dim = 2, 7, 4, 2, 6
    tokens = sequences * length
    q, k, v = operand("q", tokens, heads * dim), operand("k", tokens, kv_heads * dim), operand("v", tokens, kv_heads * dim)
    dy = operand("dy", tokens, heads * dim)

    def by_head(x, n):
        return x.reshape(sequences, length, n, dim).transpose(1, 2)

    i, j = torch.arange(length)[:, None], torch.arange(length)[None, :]
    seen = (j <= i) & ((j > i - window) | (window == 0))
    if cap:
        keys, values = (by_head(x, kv_heads).repeat_interleave(heads // kv_heads, dim=1) for x in (k, v))
        scores = cap * torch.tanh(by_head(q, heads) @ keys.transpose(2, 3) / dim**0.5 / cap)
        y = torch.softmax(scores.masked_fill(~seen, -math.inf), dim=-1) @ values
    else:
        y = F.scaled_dot_product_attention(by_head(q, heads), by_head(k, kv_heads), by_head(v, kv_heads), attn_mask=seen,
                                           enable_gqa=True)
    entry = case(y.transpose(1, 2).reshape(tokens, heads * dim), dy, q=q, k=k, v=v)
    return entry | {"length": length, "heads": heads, "kv_heads": kv_heads, "window": window, "score_cap": cap}


def elementwise():
    gates = {}
    for name, function in {"silu_gate": F.silu, "gelu_gate": lambda x: F.gelu(x, approximate="tanh")}.items():
        gate, up, dy = operand("gate", 3, 19, scale=32), operand("up", 3, 19), operand("dy", 3, 19)
        gates[name] = case(function(gate) * up, dy, gate=gate, up=up)
    x = operand("x", 3, 19)
    relu = case(F.relu(x), dy, x=x)
    y, target = operand("y", 3, 19), operand("target", 3, 19)
    loss = F.mse_loss(y, target)
    loss.backward()
    error = {"y": listed(y), "target": listed(target), "d_y": listed(y.grad), "loss": float(loss)}
    return gates, relu, error


class Replace(torch.autograd.Function):
    """The second argument's value, exactly, with the first one's gradient (x + (y - x) may miss y by a rounding)."""

    @staticmethod
    def forward(context, x, y):
        return y.clone()

    @staticmethod
    def backward(context, gradient):
        return gradient, None


def straight_through(x):
    return Replace.apply(x, torch.round(x.detach()))


def to_half(x):
    return Replace.apply(x, x.detach().to(torch.float16).to(torch.float64))


def learned_rounding(grid, bits):
    """SignRound's fake quantization, from its formulas (kernels/learned_rounding.h)."""
    rows, group, groups = 6, 8, 2
    w = operand("w", rows, groups * group, scale=512).detach()
    v = (operand("v", rows, groups * group, scale=256)).detach().requires_grad_()
    alpha = (31 / 32 - (operand("alpha", rows, groups).detach().abs() / 4)).requires_grad_()
    beta = (31 / 32 - (operand("beta", rows, groups).detach().abs() / 4)).requires_grad_()
    by_group = w.reshape(rows, groups, group)
    lo, hi = by_group.amin(-1).clamp(max=0), by_group.amax(-1).clamp(min=0)
    qmax, middle = 2**bits - 1, 2 ** (bits - 1)
    if grid == "A-ar":
        scale = torch.clamp(to_half((beta * hi - alpha * lo) / qmax), min=1e-5)
        zero = straight_through(-alpha * lo / scale)
        least, most = 0, qmax
    else:
        below, above = -alpha * lo, beta * hi
        scale = to_half(torch.where(below > above, below, -above) / middle)
        scale = torch.where(scale < 0, scale.clamp(max=-1e-5), scale.clamp(min=1e-5))
        zero = torch.zeros_like(scale)
        least, most = -middle, middle - 1
    code = straight_through(by_group / scale[..., None] + v.reshape(by_group.shape)) + zero[..., None]
    # The bounds let the gradient pass, as torch.clamp did when the paper was written (2.15 stops it there).
    kept = torch.where((code >= least) & (code <= most), code, code.detach().clamp(least, most))
    values = scale[..., None] * (kept - zero[..., None])
    gradient = operand("gradient", rows, groups * group)
    entry = case(values.reshape(rows, groups * group), gradient, v=v, alpha=alpha, beta=beta)
    return entry | {"w": listed(w), "bits": bits, "group_size": group}


BLOCKS = {
    "llama": {"num_key_value_heads": 1},
    "mistral": {"num_key_value_heads": 2, "sliding_window": 3},
    "llama-biases": {"num_key_value_heads": 2, "attention_bias": True, "mlp_bias": True,
                     "rope_parameters": {"rope_type": "yarn", "rope_theta": 100.0, "factor": 4.0, "beta_fast": 2.0,
                                         "original_max_position_embeddings": 16}},
    "qwen2": {"num_key_value_heads": 1},
    "qwen3": {"num_key_value_heads": 1, "head_dim": 6},
    "phi3": {"num_key_value_heads": 1, "partial_rotary_factor": 0.5, "pad_token_id": 0},
    "olmo2": {"num_key_value_heads": 1, "pad_token_id": 0},
    "granite": {"num_key_value_heads": 2, "attention_multiplier": 0.5, "residual_multiplier": 0.75, "logits_scaling": 1.0,
                "embedding_multiplier": 1.0},
    "gemma3": {"num_key_value_heads": 1, "head_dim": 6, "query_pre_attn_scalar": 5, "sliding_window": 3,
               "layer_types": ["sliding_attention"], "rope_local_base_freq": 50.0, "tie_word_embeddings": False},
    "gemma2": {"num_key_value_heads": 1, "head_dim": 6, "query_pre_attn_scalar": 5, "sliding_window": 3,
               "layer_types": ["full_attention"], "attn_logit_softcapping": 0.75, "final_logit_softcapping": None,
               "tie_word_embeddings": False},
    "opt": {"do_layer_norm_before": True},
    "opt-norm-last": {"do_layer_norm_before": False},
}
SEQUENCES, LENGTH, HIDDEN = 2, 6, 8


def llama_output(config, weights, x):
    """The forward pass of a model around its block: token t has row t of x as its embedding, the head is the identity, and
    the norm before it is left out."""
    ids = torch.arange(SEQUENCES * LENGTH).reshape(SEQUENCES, LENGTH).numpy()
    scale = float(torch.tensor(HIDDEN**0.5)) if config["model_type"].startswith("gemma") else 1.0
    given = weights | {"model.embed_tokens.weight": x / scale, "lm_head.weight": torch.eye(HIDDEN, dtype=torch.float64),
                       "model.norm.weight": None}
    plain = make_logits.rms_norm
    make_logits.rms_norm = lambda y, weight, epsilon: y if weight is None else plain(y, weight, epsilon)
    y = make_logits.forward(config, given, ids)
    make_logits.rms_norm = plain
    return y


def block(name, keys):
    """One block, and the gradient of the mean squared error of its output."""
    kind = name.split("-")[0] + ("_text" if name == "gemma3" else "")
    shared = dict(hidden_size=HIDDEN, num_hidden_layers=1, num_attention_heads=2, vocab_size=SEQUENCES * LENGTH,
                  torch_dtype="float32") | keys
    if kind == "opt":
        prefix = "model.decoder.layers.0."
        config = make_logits.config_of(kind, ffn_dim=12, **shared)
    else:
        prefix = "model.layers.0."
        config = make_logits.config_of(kind, **(dict(intermediate_size=12, rms_norm_eps=1e-5, tie_word_embeddings=False) |
                                                ({} if "rope_parameters" in keys else {"rope_theta": 10000.0}) | shared))
    weights = {tensor: formula_weight(tensor, shape) for tensor, shape in make_logits.shapes(config).items()}
    linears = [tensor for tensor in weights if tensor.startswith(prefix) and weights[tensor].dim() == 2]
    for tensor in linears:
        weights[tensor] = (weights[tensor] * 2).requires_grad_()
    x = operand("block input", SEQUENCES * LENGTH, HIDDEN)
    target = operand("block target", SEQUENCES * LENGTH, HIDDEN)
    if kind == "opt":
        y = make_logits.opt_block(config, weights, prefix, x.reshape(SEQUENCES, LENGTH, HIDDEN))
    else:
        y = llama_output(config, weights, x)
    loss = F.mse_loss(y.reshape(SEQUENCES * LENGTH, HIDDEN), target)
    loss.backward()
    return {"config": config, "prefix": prefix, "sequences": SEQUENCES, "length": LENGTH, "x": listed(x),
            "target": listed(target), "loss": float(loss), "d_x": listed(x.grad),
            "linears": {tensor.removeprefix(prefix).removesuffix(".weight"):
                        {"w": listed(weights[tensor]), "dw": listed(weights[tensor].grad)} for tensor in linears}}


def main():
    rms, layer = norms()
    gates, relu, error = elementwise()
    kernels = {"rms_norm": rms, "layer_norm": layer, **gates, "relu": relu, "squared_error": error,
               "A-ar": learned_rounding("A-ar", 2), "S-full": learned_rounding("S-full", 2),
               "attention": attention(0), "attention_window": attention(3),
               "attention_capped": attention(3, cap=1.5)}
    blocks = {kind: block(kind, keys) for kind, keys in BLOCKS.items()}
    (HERE / "gradients.json").write_text(json.dumps({"kernels": kernels, "blocks": blocks}, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()
