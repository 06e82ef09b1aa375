#!/usr/bin/env python3
"""Perplexity of the bundled model under AWQ, by a program that shares nothing with Roundhouse.

The search is written here from the paper and its program (llm-awq), literally, in PyTorch on the CPU in float32: the output of the
whole module for every ratio, the clipping from outputs over the sampled tokens. No Gram matrices; norms are folded in float32 and
left so. The model, its forward pass and the perplexity are those of gptq_reference.py.

    awq_reference.py [--calibration FILE] [--bits 4 3 2] [--group-size 128] [--output FILE.json]

FILE is a run's calibration.h5 (dataset "ids"), an .npz with "ids" or a .json with {"ids": [[..], ..]}. Prints and writes JSON: the
perplexities, and of each block the ratios that were chosen.
"""

import argparse
import hashlib
import json
import math
import pathlib
import time

import sentencepiece
import torch
from gptq_reference import MODEL, STAGES, Llama, draw_ids, perplexity, read_ids, test_ids

POINTS = 20  # ratios 0, 0.05, .., 0.95; clipping to 1.00, 0.95, .., 0.55


def rounded(w, bits, group_size):
    """To nearest on the grid A-awq: lowest to highest weight of a group, with a float16 scale."""
    shape = w.shape
    w = w.reshape(-1, min(group_size, shape[-1]) if group_size > 0 else shape[-1])
    low, high = w.amin(1, keepdim=True), w.amax(1, keepdim=True)
    scale = ((high - low).clamp(min=1e-5) / (2**bits - 1)).half().float()
    zero = (-torch.round(low / scale)).clamp(0, 2**bits - 1)
    return (((torch.round(w / scale) + zero).clamp(0, 2**bits - 1) - zero) * scale).reshape(shape)


class Block:
    """One block's weights by name, and its two modules as functions of their inputs."""

    def __init__(self, model, index):
        self.model, self.index = model, index

    def key(self, name):
        return f"model.layers.{self.index}.{name}.weight"

    def __getitem__(self, name):
        return self.model.weights[self.key(name)]

    def __setitem__(self, name, value):
        self.model.weights[self.key(name)] = value

    def attention(self, x):
        _, mixed = self.model.apply(0, self.index, x, x)
        return mixed @ self["self_attn.o_proj"].T

    def mlp(self, x):
        _, inner = self.model.apply(2, self.index, None, x)
        return inner @ self["mlp.down_proj"].T


def best_scales(block, names, module, inputs, bits, group_size):
    """The scales of the inputs of the linears `names`, by the error of module(input) over a list of inputs."""
    magnitude = sum(x.abs().flatten(0, 1).double().sum(0) for x in inputs) / sum(x[..., 0].numel() for x in inputs)
    original = {name: block[name] for name in names}
    wanted = [module(x) for x in inputs]
    best = (math.inf, None, None)
    losses = []
    for i in range(POINTS):
        s = (magnitude ** (i / POINTS)).clamp(min=1e-4)
        s = (s / (s.max() * s.min()).sqrt()).float()
        for name in names:
            block[name] = rounded(original[name] * s, bits, group_size) / s
        loss = sum((module(x) - y).double().pow(2).sum().item() for x, y in zip(inputs, wanted))
        losses.append(loss / sum(y.numel() for y in wanted))
        if losses[-1] < best[0]:
            best = (losses[-1], i / POINTS, s)
    for name in names:
        block[name] = original[name]
    return best[2], {"ratio": best[1], "loss_before": losses[0], "loss": best[0]}


def clipped(w, x, bits, group_size):
    """w with each group clipped to the bound with the least error of its share of the output for the tokens x."""
    size = min(group_size, w.shape[1]) if group_size > 0 else w.shape[1]
    groups = w.reshape(w.shape[0], -1, size)
    x = x.reshape(len(x), -1, size)
    largest = groups.abs().amax(2, keepdim=True)
    outputs = torch.einsum("tgk,ngk->ngt", x, groups)
    bound, least = largest.clone(), torch.full_like(largest, math.inf)
    for j in range(POINTS // 2):
        limit = largest * (1 - j / POINTS)
        trial = rounded(groups.clamp(-limit, limit), bits, size)
        error = (torch.einsum("tgk,ngk->ngt", x, trial) - outputs).pow(2).mean(2, keepdim=True)
        better = error < least
        least, bound = torch.where(better, error, least), torch.where(better, limit, bound)
    return groups.clamp(-bound, bound).reshape(w.shape)


def quantize_awq(model, samples, bits, group_size, clip_tokens):
    x = list(model.weights["model.embed_tokens.weight"][samples].split(8))
    report = []
    for index in range(model.blocks):
        block = Block(model, index)
        inputs, outputs = [[] for _ in STAGES], []
        for part in x:
            carried = None
            for stage in range(len(STAGES)):
                seen = model.input_of(stage, index, part, carried)
                inputs[stage].append(seen)
                part, carried = model.apply(stage, index, part, seen)
            outputs.append(part)
        x = outputs  # of the original block

        q, o, gate, down = (list(names) for names in STAGES)
        value, up = q[2], gate[1]
        sets = [(0, "input_layernorm", block.attention), (2, "post_attention_layernorm", block.mlp)]
        if block[value].shape == block[o[0]].shape:
            sets.append((1, value, lambda a: a @ block[o[0]].T))
        sets.append((3, up, lambda a: a @ block[down[0]].T))
        found = [best_scales(block, STAGES[stage], module, inputs[stage], bits, group_size)
                 for stage, _, module in sets]
        report.append({STAGES[stage][0]: facts for (stage, _, _), (_, facts) in zip(sets, found)})
        for (stage, before, _), (s, _) in zip(sets, found):
            for name in STAGES[stage]:
                block[name] = block[name] * s
            block[before] = block[before] / (s if block[before].dim() == 1 else s[:, None])
            inputs[stage] = [part / s for part in inputs[stage]]

        for stage, names in enumerate(STAGES):
            tokens = torch.cat([part.flatten(0, 1) for part in inputs[stage]])
            tokens = tokens[:: max(1, len(tokens) // clip_tokens)]
            for name in names:
                if not name.endswith(("q_proj", "k_proj")):
                    block[name] = clipped(block[name], tokens, bits, group_size)
                block[name] = rounded(block[name], bits, group_size)
    return report


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--calibration", type=pathlib.Path)
    parser.add_argument("--samples", type=int, default=128)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--bits", type=int, nargs="+", default=[4, 3, 2])
    parser.add_argument("--group-size", type=int, default=128)
    parser.add_argument("--clip-tokens", type=int, default=512)
    parser.add_argument("--window", type=int, default=512)
    parser.add_argument("--threads", type=int, default=1)
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
            "grid": "A-awq",
            "clip_tokens": arguments.clip_tokens,
            "window": arguments.window,
            "windows": len(test) // arguments.window,
        },
        "perplexity": {},
        "scale_sets": {},
    }
    for bits in arguments.bits:
        begin = time.time()
        model = Llama(MODEL)
        name = f"awq-w{bits}g{arguments.group_size}"
        result["scale_sets"][name] = quantize_awq(
            model, torch.from_numpy(ids), bits, arguments.group_size, arguments.clip_tokens)
        quantized = time.time()
        result["perplexity"][name] = round(perplexity(model, test, arguments.window), 5)
        print(f"{name:14} {result['perplexity'][name]:10.5f}   {quantized - begin:6.1f} s to quantize", flush=True)
        if arguments.output:
            arguments.output.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
