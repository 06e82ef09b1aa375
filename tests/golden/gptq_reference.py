#!/usr/bin/env python3
"""Perplexity of the bundled model under RTN and GPTQ, by a program that shares nothing with Roundhouse.

The model's forward pass, the calibration and GPTQ itself are written here from the papers, in PyTorch on the CPU:
float32 activations, float64 for the Hessians, their factors and the column updates. GPTQ as Roundhouse does it by default:
asymmetric grid with 0 in range, float16 scales, damping 0.01, act-order with static groups, true-sequential. The factor is
taken literally: Cholesky of H, inverse, upper Cholesky of that.

    gptq_reference.py [--calibration FILE] [--bits 4 3 2] [--group-size 128] [--output FILE.json]

FILE is a run's calibration.h5 (dataset "ids"), an .npz with "ids" or a .json with {"ids": [[..], ..]}, [samples, length]
each. Without it, windows are drawn from the bundled calibration text. Prints and writes JSON.
"""

import argparse
import hashlib
import json
import math
import pathlib
import random
import time

import numpy as np
import sentencepiece
import torch
from safetensors.torch import load_file

MODEL = pathlib.Path(__file__).resolve().parent.parent / "data" / "tiny-world"

# The linears of a block by the input that they share, in the order in which data flows.
STAGES = (
    ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    ("self_attn.o_proj",),
    ("mlp.gate_proj", "mlp.up_proj"),
    ("mlp.down_proj",),
)


class Llama:
    """Forward pass of a LLaMA, cut at the inputs of its linears."""

    def __init__(self, directory):
        self.config = json.loads((directory / "config.json").read_text())
        self.weights = {k: v.float() for k, v in load_file(directory / "model.safetensors").items()}
        self.head_dim = self.config["hidden_size"] // self.config["num_attention_heads"]
        self.blocks = self.config["num_hidden_layers"]

    def norm(self, x, name):
        scale = torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.config["rms_norm_eps"])
        return x * scale * self.weights[name]

    def linear(self, x, block, name):
        return x @ self.weights[f"model.layers.{block}.{name}.weight"].T

    def rotate(self, x):
        half = self.head_dim // 2
        frequency = self.config["rope_theta"] ** (-torch.arange(half, dtype=torch.float64) / half)
        angle = torch.arange(x.shape[-2], dtype=torch.float64)[:, None] * frequency[None, :]
        cos, sin = angle.cos().float(), angle.sin().float()
        a, b = x[..., :half], x[..., half:]
        return torch.cat((a * cos - b * sin, b * cos + a * sin), -1)

    def input_of(self, stage, block, x, carried):
        """What the linears of a stage read, from the residual x or what the stage before it left."""
        prefix = f"model.layers.{block}."
        if stage == 0:
            return self.norm(x, prefix + "input_layernorm.weight")
        if stage == 2:
            return self.norm(x, prefix + "post_attention_layernorm.weight")
        return carried

    def apply(self, stage, block, x, inputs):
        """Residual and what is carried to the next stage, after the linears of this one."""
        if stage == 0:
            batch, length, _ = x.shape
            q, k, v = (
                self.linear(inputs, block, name).view(batch, length, -1, self.head_dim).transpose(1, 2)
                for name in STAGES[0]
            )
            q, k = self.rotate(q), self.rotate(k)
            repeat = q.shape[1] // k.shape[1]
            k, v = k.repeat_interleave(repeat, 1), v.repeat_interleave(repeat, 1)
            mixed = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
            return x, mixed.transpose(1, 2).reshape(batch, length, -1)
        if stage == 2:
            gate, up = (self.linear(inputs, block, name) for name in STAGES[2])
            return x, gate * torch.sigmoid(gate) * up
        return x + self.linear(inputs, block, STAGES[stage][0]), None

    def block(self, block, x):
        carried = None
        for stage in range(len(STAGES)):
            x, carried = self.apply(stage, block, x, self.input_of(stage, block, x, carried))
        return x

    def loss(self, ids):
        """Mean cross-entropy of each window's predictions after its first token."""
        x = self.weights["model.embed_tokens.weight"][ids]
        for block in range(self.blocks):
            x = self.block(block, x)
        logits = self.norm(x, "model.norm.weight") @ self.weights["lm_head.weight"].T
        losses = torch.nn.functional.cross_entropy(
            logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
        return losses.view(len(ids), -1).double().mean(1)


def perplexity(model, ids, window):
    count = len(ids) // window
    windows = torch.tensor(ids[: count * window]).view(count, window)
    return math.exp(torch.cat([model.loss(part) for part in windows.split(16)]).mean().item())


def test_ids():
    tokenizer = sentencepiece.SentencePieceProcessor(model_file=str(MODEL / "tokenizer.model"))
    return [tokenizer.bos_id()] + tokenizer.encode((MODEL / "test.txt").read_text(encoding="utf-8"))


def perplexity_of_weights(weights, window=512):
    """Of the bundled model with other weights, by their names in the checkpoint."""
    model = Llama(MODEL)
    model.weights = {name: weight.detach() for name, weight in weights.items()}
    with torch.no_grad():
        return perplexity(model, test_ids(), window)


def grid(w, bits):
    """Scale and zero point of each row of w, the scale as a float16 holds it."""
    low, high = w.amin(1).clamp(max=0), w.amax(1).clamp(min=0)
    empty = (low == 0) & (high == 0)
    low[empty], high[empty] = -1, 1
    scale = ((high - low) / (2**bits - 1)).half().double()
    return scale, torch.round(-low / scale)


def nearest(w, scale, zero, bits):
    return scale * ((torch.round(w / scale) + zero).clamp(0, 2**bits - 1) - zero)


def rtn(weight, bits, group_size):
    w = weight.double()
    for begin in range(0, w.shape[1], group_size):
        part = w[:, begin : begin + group_size]
        scale, zero = grid(part, bits)
        w[:, begin : begin + group_size] = nearest(part, scale[:, None], zero[:, None], bits)
    return w.float()


def gptq(weight, hessian, bits, group_size, damping):
    w, h = weight.double().clone(), hessian.clone()
    dead = h.diagonal() == 0
    h.diagonal()[dead] = 1
    w[:, dead] = 0
    grids = [grid(part, bits) for part in w.split(group_size, 1)]
    order = torch.argsort(h.diagonal(), descending=True, stable=True)
    w, h = w[:, order], h[order][:, order]
    h.diagonal().add_(damping * h.diagonal().mean())
    upper = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(h)), upper=True)
    quantized = torch.zeros_like(w)
    for i in range(w.shape[1]):
        scale, zero = grids[order[i].item() // group_size]
        quantized[:, i] = nearest(w[:, i], scale, zero, bits)
        error = (w[:, i] - quantized[:, i]) / upper[i, i]
        w[:, i:] -= error[:, None] * upper[i, i:][None, :]
    return quantized[:, torch.argsort(order)].float()


def quantize_rtn(model, bits, group_size):
    for block in range(model.blocks):
        for name in sum(STAGES, ()):
            key = f"model.layers.{block}.{name}.weight"
            model.weights[key] = rtn(model.weights[key], bits, group_size)


def quantize_gptq(model, samples, bits, group_size, damping):
    x = list(model.weights["model.embed_tokens.weight"][samples].split(8))
    for block in range(model.blocks):
        carried = [None] * len(x)
        for stage, names in enumerate(STAGES):
            hessian = 0
            inputs = [model.input_of(stage, block, a, c) for a, c in zip(x, carried)]
            for part in inputs:
                rows = part.flatten(0, 1).double()
                hessian = hessian + rows.T @ rows
            hessian *= 2 / len(samples)
            for name in names:
                key = f"model.layers.{block}.{name}.weight"
                model.weights[key] = gptq(model.weights[key], hessian, bits, group_size, damping)
            for i, part in enumerate(inputs):
                x[i], carried[i] = model.apply(stage, block, x[i], part)


def read_ids(path):
    if path.suffix == ".h5":
        import h5py

        with h5py.File(path) as file:
            return np.asarray(file["ids"], dtype=np.int64)
    if path.suffix == ".npz":
        return np.load(path)["ids"].astype(np.int64)
    return np.asarray(json.loads(path.read_text())["ids"], dtype=np.int64)


def draw_ids(tokenizer, count, length, seed):
    """A random window of each of `count` random texts that are long enough."""
    with open(MODEL / "calibration.jsonl", encoding="utf-8") as file:
        texts = [json.loads(line)["text"] for line in file]
    chance = random.Random(seed)
    chance.shuffle(texts)
    windows = []
    for text in texts:
        ids = [tokenizer.bos_id()] + tokenizer.encode(text)
        if len(ids) > length:
            begin = chance.randrange(len(ids) - length)
            windows.append(ids[begin : begin + length])
        if len(windows) == count:
            return np.asarray(windows, dtype=np.int64)
    raise SystemExit(f"only {len(windows)} texts have more than {length} tokens")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--calibration", type=pathlib.Path)
    parser.add_argument("--samples", type=int, default=128)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--bits", type=int, nargs="+", default=[4, 3, 2])
    parser.add_argument("--group-size", type=int, default=128)
    parser.add_argument("--damping", type=float, default=0.01)
    parser.add_argument("--window", type=int, default=512)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--no-rtn", action="store_true")
    parser.add_argument("--output", type=pathlib.Path)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.set_grad_enabled(False)

    tokenizer = sentencepiece.SentencePieceProcessor(model_file=str(MODEL / "tokenizer.model"))
    if arguments.calibration:
        ids = read_ids(arguments.calibration)
    else:
        ids = draw_ids(tokenizer, arguments.samples, arguments.length, arguments.seed)
    test = test_ids()

    result = {
        "settings": {
            "samples": ids.shape[0],
            "length": ids.shape[1],
            "calibration": arguments.calibration.name if arguments.calibration else f"drawn with seed {arguments.seed}",
            "ids_sha256": hashlib.sha256(ids.astype("<i4").tobytes()).hexdigest(),
            "group_size": arguments.group_size,
            "grid": "A-gptq",
            "damping": arguments.damping,
            "act_order": "static",
            "true_sequential": True,
            "window": arguments.window,
            "windows": len(test) // arguments.window,
        },
        "perplexity": {},
    }

    def measure(name, change):
        begin = time.time()
        model = Llama(MODEL)
        change(model)
        result["perplexity"][name] = round(perplexity(model, test, arguments.window), 5)
        print(f"{name:14} {result['perplexity'][name]:10.5f}   {time.time() - begin:6.1f} s", flush=True)
        if arguments.output:
            arguments.output.write_text(json.dumps(result, indent=1) + "\n")

    measure("original", lambda model: None)
    for bits in arguments.bits:
        label = f"w{bits}g{arguments.group_size}"
        if not arguments.no_rtn:
            measure(f"rtn-{label}", lambda model: quantize_rtn(model, bits, arguments.group_size))
        measure(f"gptq-{label}", lambda model: quantize_gptq(
            model, torch.from_numpy(ids), bits, arguments.group_size, arguments.damping))


if __name__ == "__main__":
    main()
