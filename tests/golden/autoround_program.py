#!/usr/bin/env python3
"""auto-round (the authors' SignRound) on the bundled model, on given token windows; see authors_comparison.py.

Prints one line of JSON: {"program", "perplexity", "seconds"}. Needs auto-round, torch, transformers, sentencepiece, h5py
(pip install auto-round transformers sentencepiece h5py; run with 0.16.1, torch 2.15.0, transformers 5.24.0).
"""

import argparse
import json
import pathlib
import time

import auto_round
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from gptq_reference import MODEL, Llama, perplexity_of_weights, read_ids


class Tokenizer:
    """auto-round asks for one, and for nothing of it where it is given token ids."""

    pad_token_id = eos_token_id = None
    padding_side = "right"

    def save_pretrained(self, *_, **__):
        pass


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--calibration", type=pathlib.Path, required=True)
    parser.add_argument("--bits", type=int, default=4)
    parser.add_argument("--group-size", type=int, default=128)
    parser.add_argument("--symmetric", action="store_true")
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--iterations", type=int, default=200)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)

    ids = torch.from_numpy(read_ids(arguments.calibration))
    samples = [{"input_ids": row[None], "attention_mask": torch.ones_like(row[None])} for row in ids]
    config = json.loads((MODEL / "config.json").read_text())
    config.pop("torch_dtype")
    model = LlamaForCausalLM(LlamaConfig(**config))
    model.load_state_dict(Llama(MODEL).weights)
    rounder = auto_round.AutoRound(
        model.float().eval(), Tokenizer(), bits=arguments.bits, group_size=arguments.group_size, sym=arguments.symmetric,
        dataset=samples, iters=arguments.iterations, nsamples=len(samples), seqlen=ids.shape[1],
        batch_size=arguments.batch_size, amp=arguments.bf16, enable_torch_compile=arguments.compile, device_map="cpu")
    begin = time.time()
    quantized = rounder.quantize()
    seconds = time.time() - begin
    quantized = quantized[0] if isinstance(quantized, tuple) else quantized
    print(json.dumps({
        "program": f"auto-round {auto_round.__version__}, torch {torch.__version__}",
        "perplexity": perplexity_of_weights(quantized.float().state_dict()), "seconds": seconds}))


if __name__ == "__main__":
    main()
