#!/usr/bin/env python3
"""Perplexity of the bundled model under SignRound, by a program that shares nothing with Roundhouse.

The forward pass is that of gptq_reference.py in float32; gradients are torch's autograd, straight through every rounding;
the update is signed gradient descent. SignRound as Roundhouse does it by default (Cheng et al. 2023): asymmetric grid, float16
scales, 200 iterations of 8 samples drawn independently, rate 1 / iterations falling linearly, full-precision targets, quantized
inputs, the best loss's rounding kept.

    signround_reference.py --calibration RUN/calibration.h5 [--bits 4 2] [--iterations 200] [--symmetric]

Samples are drawn by torch's generator, so the numbers are not Roundhouse's digit by digit.
"""

import argparse
import pathlib
import time

import torch

from gptq_reference import MODEL, STAGES, Llama, perplexity, read_ids, test_ids

LINEARS = sum(STAGES, ())


class StraightThrough(torch.autograd.Function):
    """Rounds, or clamps with the bounds included, exactly; the gradient passes where `mask` is set."""

    @staticmethod
    def forward(context, x, value, mask):
        context.save_for_backward(mask)
        return value.clone()

    @staticmethod
    def backward(context, gradient):
        (mask,) = context.saved_tensors
        return gradient * mask, None, None


def passing(x, value):
    return StraightThrough.apply(x, value, torch.ones_like(x))


class LearnedLinear:
    def __init__(self, weight, bits, group_size, symmetric):
        self.weight, self.bits, self.symmetric = weight, bits, symmetric
        self.groups = weight.reshape(weight.shape[0], -1, group_size)
        self.low = self.groups.amin(-1).clamp(max=0)
        self.high = self.groups.amax(-1).clamp(min=0)
        self.v = torch.zeros_like(self.groups, requires_grad=True)
        self.alpha = torch.ones_like(self.low, requires_grad=True)
        self.beta = torch.ones_like(self.low, requires_grad=True)

    def rounded(self):
        low, high = self.alpha * self.low, self.beta * self.high
        levels, middle = 2**self.bits - 1, 2 ** (self.bits - 1)
        if self.symmetric:
            exact = torch.where(-low > high, -low, -high) / middle
            scale = passing(exact, exact.half().float())
            scale = torch.where(scale < 0, scale.clamp(max=-1e-5), scale.clamp(min=1e-5))
            zero, least, most = torch.zeros_like(scale), -middle, middle - 1
        else:
            exact = (high - low) / levels
            scale = passing(exact, exact.half().float()).clamp(min=1e-5)
            zero, least, most = passing(-low / scale, torch.round(-low / scale)), 0, levels
        at = self.groups / scale[..., None] + self.v
        code = passing(at, torch.round(at)) + zero[..., None]
        kept = StraightThrough.apply(code, code.clamp(least, most), ((code >= least) & (code <= most)).float())
        return (scale[..., None] * (kept - zero[..., None])).reshape(self.weight.shape)

    def step(self, rate):
        for parameter in (self.v, self.alpha, self.beta):
            parameter.data -= rate * parameter.grad.sign()
            parameter.grad = None
        self.alpha.data.clamp_(0, 1)
        self.beta.data.clamp_(0, 1)


def quantize(model, samples, arguments, bits):
    generator = torch.Generator().manual_seed(arguments.seed)
    original = model.weights["model.embed_tokens.weight"][samples]
    quantized = original.clone()

    def through(block, x):
        return torch.cat([model.block(block, part) for part in x.split(8)])

    for block in range(model.blocks):
        with torch.no_grad():
            target = through(block, original)
        keys = [f"model.layers.{block}.{name}.weight" for name in LINEARS]
        learned = [LearnedLinear(model.weights[key], bits, arguments.group_size, arguments.symmetric) for key in keys]
        best, kept, first = float("inf"), None, None
        for i in range(arguments.iterations):
            batch = torch.randperm(len(samples), generator=generator)[: arguments.batch_size]
            for key, linear in zip(keys, learned):
                model.weights[key] = linear.rounded()
            loss = torch.nn.functional.mse_loss(model.block(block, quantized[batch]), target[batch])
            first = loss.item() if first is None else first
            if loss.item() < best:
                best, kept = loss.item(), [model.weights[key].detach() for key in keys]
            loss.backward()
            for linear in learned:
                linear.step((1 - i / arguments.iterations) / arguments.iterations)
        for key, weight in zip(keys, kept):
            model.weights[key] = weight
        print(f"  block {block}: loss {first:.3e} -> {best:.3e}", flush=True)
        with torch.no_grad():
            original, quantized = target, through(block, quantized)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--calibration", type=pathlib.Path, required=True)
    parser.add_argument("--bits", type=int, nargs="+", default=[4, 2])
    parser.add_argument("--group-size", type=int, default=128)
    parser.add_argument("--symmetric", action="store_true")
    parser.add_argument("--iterations", type=int, default=200)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    test = test_ids()
    samples = torch.from_numpy(read_ids(arguments.calibration))
    for bits in arguments.bits:
        begin = time.time()
        model = Llama(MODEL)
        quantize(model, samples, arguments, bits)
        seconds = time.time() - begin
        with torch.no_grad():
            print(f"signround-w{bits}g{arguments.group_size} {perplexity(model, test, 512):.5f}   {seconds:.1f} s", flush=True)


if __name__ == "__main__":
    main()
