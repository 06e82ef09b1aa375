#!/usr/bin/env python3
"""Small random models of every architecture: what we compute beside transformers, and our exports loaded by it.

    PYTHON load_architectures.py --program build/bin/roundhouse --work DIR [--only NAME]...

PYTHON: of an environment with transformers and compressed-tensors, as load_exports.py makes them (VENVS/transformers-5.24/bin/python).
Of each model: the perplexity of the original by both, and for each recipe that of the program beside those of its exports as
compressed-tensors, GPTQ and dense float32, loaded as their users load them. Exit code: 0 if all agree to 0.01 % (compressed-tensors
and GPTQ, whose readers compute in float16 or round products: 0.5 %), 1 if not.
"""

import argparse
import json
import math
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
}
RECIPES = {
    "rtn": "{method: rtn, bits: 4, group_size: 32, symmetric: true}",
    "gptq": "{method: gptq, bits: 4, group_size: 32, symmetric: true}",
    "awq": "{method: awq, bits: 4, group_size: 32, symmetric: true}",
}
TOLERANCE = {"dense": 1e-4, "compressed-tensors": 5e-3, "gptq": 5e-3}


def make_model(name, folder):
    kind, keys = MODELS[name]
    torch.manual_seed(3)
    config = getattr(transformers, kind + "Config")(**(SHARED | keys))
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


def perplexity(folder):
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    ids = windows()
    with torch.no_grad():
        logits = model(ids).logits[:, :-1].double()
    return float(torch.nn.functional.cross_entropy(logits.reshape(-1, logits.shape[-1]), ids[:, 1:].reshape(-1)).exp())


def quantize(program, model, work):
    run = work / "run"
    recipes = "\n".join(f"  - {recipe}" for recipe in RECIPES.values())
    (work / "config.yaml").write_text(f"""model: {model}
run: {run}
calibration: {{text: {TINY_WORLD}/calibration.jsonl, samples: 16, sequence_length: 64, seed: 1}}
recipes:
{recipes}
export: {{formats: [compressed-tensors, gptq, dense], dtype: float32}}
evaluate:
  perplexity: [{{name: test, text: {TINY_WORLD}/test.txt, window: {WINDOW}, limit: {WINDOWS}}}]
""")
    with open(work / "run.log", "w") as log:
        subprocess.run([program, "run", work / "config.yaml"], check=True, stdout=log, stderr=log)
    return run


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--program", type=pathlib.Path, required=True)
    parser.add_argument("--work", type=pathlib.Path, required=True)
    parser.add_argument("--only", action="append", choices=MODELS, help="only this one; may be repeated")
    arguments = parser.parse_args()
    print(f"transformers {transformers.__version__}. Perplexities: ours, by transformers, and how far they are apart.\n")
    print("| model | original | " + " | ".join(f"{recipe}, {form}" for recipe in RECIPES for form in TOLERANCE) + " |")
    print("|---" * (2 + len(RECIPES) * len(TOLERANCE)) + "|", flush=True)
    wrong = 0
    for name in arguments.only or MODELS:
        work = arguments.work.resolve() / name
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
        make_model(name, work / "model")
        run = quantize(arguments.program.resolve(), work / "model", work)
        results = {file.stem: json.loads(file.read_text()) for file in (run / "results").glob("*.json")}

        def compare(ours, folder, tolerance):
            nonlocal wrong
            theirs = perplexity(folder)
            apart = abs(ours / theirs - 1)
            good = math.isfinite(apart) and apart <= tolerance
            wrong += not good
            return f"{ours:.4f} {theirs:.4f} {apart:.0e}" + ("" if good else " WRONG")

        cells = [compare(results["original"]["perplexity"]["test"], work / "model", 1e-5)]
        for method in RECIPES:
            (recipe,) = (name for name in results if name.startswith(method + "-"))
            ours = results[recipe]["perplexity"]["test"]
            cells += [compare(ours, run / "export" / recipe / form, TOLERANCE[form]) for form in TOLERANCE]
        print(f"| {name} | " + " | ".join(cells) + " |", flush=True)
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
