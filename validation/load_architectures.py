#!/usr/bin/env python3
"""Exports of small random models of every architecture, loaded by transformers.

    PYTHON load_architectures.py --samples build/bin/export_samples --work DIR [--only NAME]...

PYTHON: of an environment with transformers and compressed-tensors, as load_exports.py makes them (VENVS/transformers-5.24/bin/python).
export_samples (tests/stages) rounds each model to nearest, 4 bits in groups of 32, and writes every format. What counts: the dense
export in float32 and the others compute the same (mean difference of logits over their standard deviation, within
0.5 %, which leaves room for products that readers round), and something else than the original. That dense exports are what we compute is a test of ours
(tests/stages/export/opt_test.cpp), that we compute what transformers does another (tests/golden/logits.md). Exit code: 0 or 1.
"""

import argparse
import os
import pathlib
import shutil
import subprocess
import sys

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")

import sentencepiece
import torch
import transformers

HERE = pathlib.Path(__file__).resolve().parent
TINY_WORLD = HERE.parent / "tests" / "data" / "tiny-world"
WINDOW, WINDOWS = 64, 20
SHARED = dict(vocab_size=1024, hidden_size=128, intermediate_size=256, num_hidden_layers=2, num_attention_heads=4,
              num_key_value_heads=2, max_position_embeddings=256, initializer_range=0.2, bos_token_id=1, eos_token_id=2,
              pad_token_id=0)
LLAMA3 = dict(rope_type="llama3", rope_theta=5e5, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
              original_max_position_embeddings=64)
YARN = dict(rope_type="yarn", rope_theta=1e4, factor=4.0, original_max_position_embeddings=64)
LONG = dict(rope_type="longrope", rope_theta=1e4, partial_rotary_factor=0.75, short_factor=[1.0 + 0.1 * j for j in range(12)],
            long_factor=[1.0 + j for j in range(12)])
MODELS = {
    "llama-biases": ("Llama", dict(attention_bias=True, mlp_bias=True)),
    "llama-3": ("Llama", dict(rope_parameters=LLAMA3, head_dim=64)),
    "mistral": ("Mistral", dict(sliding_window=16, head_dim=64)),
    "qwen2": ("Qwen2", dict(use_sliding_window=True, sliding_window=16, max_window_layers=1, tie_word_embeddings=True)),
    "qwen2-yarn": ("Qwen2", dict(rope_parameters=YARN)),
    "qwen3": ("Qwen3", dict(head_dim=64)),
    "phi3": ("Phi3", dict(num_key_value_heads=4, sliding_window=47)),
    "phi3-longrope": ("Phi3", dict(rope_parameters=LONG, original_max_position_embeddings=32)),
    "olmo2": ("Olmo2", {}),
    "granite": ("Granite", dict(attention_multiplier=0.1, residual_multiplier=0.5, embedding_multiplier=4.0, logits_scaling=2.0)),
    "gemma2": ("Gemma2", dict(head_dim=64, query_pre_attn_scalar=48, sliding_window=16, attn_logit_softcapping=5.0,
                              final_logit_softcapping=30.0, tie_word_embeddings=True)),
    "gemma3": ("Gemma3", dict(head_dim=64, query_pre_attn_scalar=48, sliding_window=16, tie_word_embeddings=True,
                              layer_types=["sliding_attention", "full_attention"])),
}
CONFIGS = {"Gemma3": "Gemma3TextConfig"}
FORMATS = ["compressed-tensors", "gptq"]
TOLERANCE = 5e-3  # as kinds.py has it: room for products that readers round


def make_model(name, folder):
    kind, keys = MODELS[name]
    torch.manual_seed(3)
    config = getattr(transformers, CONFIGS.get(kind, kind + "Config"))(**(SHARED | keys))
    model = getattr(transformers, kind + "ForCausalLM")(config)
    with torch.no_grad():
        for parameter, values in model.named_parameters():
            if "norm" in parameter:
                values.uniform_(0.5, 1.5)
            elif parameter.endswith(".bias"):
                values.normal_(0.0, 0.2)
    model.save_pretrained(folder)
    for file in ("tokenizer.model", "tokenizer_config.json"):
        shutil.copy(TINY_WORLD / file, folder)


def windows():
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(TINY_WORLD / "tokenizer.model"))
    ids = [1] + pieces.encode((TINY_WORLD / "test.txt").read_text())
    return torch.tensor(ids[: WINDOW * WINDOWS]).reshape(-1, WINDOW)


def logits_of(folder):
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        return model(windows()).logits.double()


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--samples", type=pathlib.Path, required=True)
    parser.add_argument("--work", type=pathlib.Path, required=True)
    parser.add_argument("--only", action="append", choices=MODELS, help="only this one; may be repeated")
    arguments = parser.parse_args()
    print(f"transformers {transformers.__version__}\n")
    print("| model | rounding changes logits by | " + " | ".join(f"{form} differs from dense by" for form in FORMATS) + " |")
    print("|---" * (2 + len(FORMATS)) + "|", flush=True)
    wrong = 0
    for name in arguments.only or MODELS:
        work = arguments.work.resolve() / name
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
        make_model(name, work / "model")
        blocks = str(SHARED["num_hidden_layers"])
        subprocess.run([arguments.samples.resolve(), work / "model", work / "out", blocks, "4", "32", "S-gptq"], check=True)
        dense = logits_of(work / "out" / "dense")

        def apart(folder):
            return float((logits_of(folder) - dense).abs().mean() / dense.std())

        rounding = apart(work / "model")
        wrong += not rounding > 2 * TOLERANCE
        cells = [f"{100 * rounding:.1f} %"]
        for form in FORMATS:
            try:
                difference = apart(work / "out" / form)
                wrong += not difference < TOLERANCE
                cells.append(f"{difference:.0e}" + ("" if difference < TOLERANCE else " WRONG"))
            except Exception as error:
                wrong += 1
                cells.append("refused: " + str(error).splitlines()[0])
        print(f"| {name} | " + " | ".join(cells) + " |", flush=True)
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
