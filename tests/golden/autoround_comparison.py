#!/usr/bin/env python3
"""auto-round on the bundled model with the token windows of a Roundhouse run: its perplexity and its seconds.

    autoround_comparison.py --calibration RUN/calibration.h5 [--bits 4 2] [--symmetric] [--iterations 200] [--threads 2]

Needs auto-round, torch, transformers, sentencepiece and h5py. Compare with a run of the same windows whose recipe is
{method: signround, preset: current, grid: A-ar} (or S-full with --symmetric): the same iterations, batches, rates and
grid. The perplexity is gptq_reference.py's, of the weights that auto-round leaves in the model.
"""

import argparse
import json
import pathlib
import time

import sentencepiece
import torch
from auto_round import AutoRound
from transformers import LlamaConfig, LlamaForCausalLM

from gptq_reference import MODEL, Llama, perplexity, read_ids


def load_model():
    config = json.loads((MODEL / "config.json").read_text())
    config.pop("torch_dtype")
    model = LlamaForCausalLM(LlamaConfig(**config))
    model.load_state_dict(Llama(MODEL).weights)
    return model.float().eval()


class Tokenizer:
    """auto-round asks for one, and for nothing of it where it is given token ids."""

    pad_token_id = eos_token_id = None
    padding_side = "right"

    def save_pretrained(self, *_, **__):
        pass


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--calibration", type=pathlib.Path, required=True)
    parser.add_argument("--bits", type=int, nargs="+", default=[4, 2])
    parser.add_argument("--group-size", type=int, default=128)
    parser.add_argument("--symmetric", action="store_true")
    parser.add_argument("--iterations", type=int, default=200)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    tokenizer = sentencepiece.SentencePieceProcessor(model_file=str(MODEL / "tokenizer.model"))
    test = [tokenizer.bos_id()] + tokenizer.encode((MODEL / "test.txt").read_text(encoding="utf-8"))
    ids = torch.from_numpy(read_ids(arguments.calibration))
    samples = [{"input_ids": row[None], "attention_mask": torch.ones_like(row[None])} for row in ids]

    for bits in arguments.bits:
        model = load_model()
        rounder = AutoRound(
            model, Tokenizer(), bits=bits, group_size=arguments.group_size, sym=arguments.symmetric, dataset=samples,
            iters=arguments.iterations, nsamples=len(samples), seqlen=ids.shape[1], batch_size=arguments.batch_size,
            amp=False, enable_torch_compile=False, device_map="cpu")
        begin = time.time()
        quantized = rounder.quantize()
        seconds = time.time() - begin
        quantized = (quantized[0] if isinstance(quantized, tuple) else quantized).float()
        ours = Llama(MODEL)
        ours.weights = {name: weight.detach() for name, weight in quantized.state_dict().items()}
        with torch.no_grad():
            print(f"auto-round w{bits}g{arguments.group_size} {perplexity(ours, test, 512):.5f}   {seconds:.1f} s", flush=True)


if __name__ == "__main__":
    main()
