"""Loads exports with one library, generates, measures. Started by load_exports.py with an engine's Python:

    PYTHON load_one.py LOADER TEXT REFERENCES < EXPORTS

EXPORTS: one folder a line. Prints a JSON object a line: {"export": ..., "perplexity": ..., "logits": ..., "text": ...}, or
"error" or "not_tried" in place of figures. REFERENCES: a folder of logits, by recipe: the loader `reference` writes them there
from dense exports, the others compare with them.
"""

import importlib.util
import json
import logging
import math
import os
import pathlib
import sys
import traceback

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")  # the same arithmetic, without minutes of compiling it

import torch

WINDOW, WINDOWS = 512, 4


def with_transformers(folder):
    """As its users call it. What reads the weights is up to config.json."""
    import transformers

    return transformers.AutoModelForCausalLM.from_pretrained(folder)


def with_dequantize(folder):
    import transformers

    config = transformers.CompressedTensorsConfig(dequantize=True)
    return transformers.AutoModelForCausalLM.from_pretrained(folder, quantization_config=config)


def with_gptqmodel(folder):
    """In float16 and by its plain PyTorch kernel: by itself it takes bfloat16 on a CPU, whose rounding alone is worth 0.4 % of the logits,
    and a kernel that knows groups of 32, 64, 128 and 256 columns only."""
    from gptqmodel import BACKEND, GPTQModel

    return GPTQModel.load(str(folder), device="cpu", backend=BACKEND.TORCH, dtype=torch.float16).model


def with_autoawq(folder):
    """On the CPU it would take kernels of a library that is no longer made; its linears' plain PyTorch path reads the same files."""
    import awq.models.base as base
    import awq.modules.linear.gemm as gemm
    from awq import AutoAWQForCausalLM

    base.get_best_device = lambda: "cuda:0"
    gemm.TRITON_AVAILABLE = False
    return AutoAWQForCausalLM.from_quantized(str(folder), fuse_layers=False, device_map={"": "cpu"}).model


# What each reads at all: others are not tried.
LOADERS = {
    "reference": (with_transformers, ["dense"]),
    "transformers": (with_transformers, ["compressed-tensors", "gptq", "awq", "dense"]),
    "transformers-dequantize": (with_dequantize, ["compressed-tensors"]),
    "gptqmodel": (with_gptqmodel, ["gptq", "awq"]),
    "autoawq": (with_autoawq, ["awq"]),
}


class Reports(logging.Handler):
    """transformers throws "look at the above report": its first line of a tensor that does not fit."""

    mismatch = ""

    def emit(self, record):
        lines = [line for line in record.getMessage().splitlines() if "MISMATCH" in line]
        self.mismatch = self.mismatch or " ".join(lines[:1])


def token_ids(folder, text):
    import sentencepiece

    processor = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    return [processor.bos_id(), *processor.encode(text)][: WINDOW * WINDOWS]


def measure(model, ids):
    """Perplexity as the program measures it (the mean over windows), and the logits of the first window."""
    windows = torch.tensor(ids).view(WINDOWS, WINDOW)
    model.eval()
    with torch.no_grad():
        logits = model(input_ids=windows).logits.float()
        losses = [torch.nn.functional.cross_entropy(scores[:-1], window[1:]).double().item()
                  for scores, window in zip(logits, windows)]
        made = model.generate(input_ids=windows[:1, :16], max_new_tokens=4, do_sample=False)
    return math.exp(sum(losses) / len(losses)), logits[0], made[0, 16:].tolist()


def load(loader, folder, text, references):
    read, formats = LOADERS[loader]
    recipe, form = folder.parts[-2:]
    if form not in formats:
        return {"not_tried": f"{loader} does not read the format {form}"}
    if form in ("gptq", "awq") and loader != "autoawq" and importlib.util.find_spec("gptqmodel") is None:
        return {"not_tried": "no GPTQModel here, without which transformers reads neither GPTQ nor AWQ"}
    perplexity, logits, made = measure(read(folder), token_ids(folder, text))
    expected = references / f"{recipe}.pt"
    if loader == "reference":
        torch.save(logits, expected)
    theirs = torch.load(expected)
    off = (logits - theirs).abs().mean() / theirs.std()
    return {"perplexity": perplexity, "logits": off.item(), "tokens": made}


def main():
    loader, text, references = sys.argv[1], pathlib.Path(sys.argv[2]).read_text(), pathlib.Path(sys.argv[3])
    reports = Reports()
    logging.getLogger("transformers").addHandler(reports)
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # libraries talk
    for line in sys.stdin:
        folder = pathlib.Path(line.strip())
        try:
            answer = load(loader, folder, text, references)
        except Exception as error:  # whatever a library throws is its answer
            traceback.print_exc()
            answer = {"error": f"{type(error).__name__}: {error} {reports.mismatch}"}
        reports.mismatch = ""
        print(json.dumps({"export": str(folder), **answer}), file=answers, flush=True)


if __name__ == "__main__":
    main()
