#!/usr/bin/env python3
"""Compares GGUF exports with the run's weights, by the package gguf, and with its perplexity, by llama.cpp.

    python3 -m venv venv && venv/bin/pip install numpy gguf xllamacpp sentencepiece
    venv/bin/python validation/check_gguf.py --program build/bin/roundhouse --work /tmp/gguf

Quantizes the bundled model by rounding to nearest on every grid that GGUF holds, exports it as gguf and as dense float32, and prints a
line for each recipe:

- tensors that gguf unpacks to what the dense export has, bit by bit;
- perplexity by the program and by llama.cpp (from xllamacpp, a build of it), of the same token windows: of the file as it is, where
  llama.cpp rounds activations to 8 bits before it multiplies, and of the same weights in float32, where it does not.

Ends with 1 if a bit differs, or the perplexity of float32 by more than 0.01 %.
"""

import argparse
import json
import math
import pathlib
import subprocess
import sys

import gguf
import numpy as np

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "tests" / "golden"))
import dequantize  # noqa: E402: after the path

MODEL = HERE.parent / "tests" / "data" / "tiny-world"
WINDOW = 64


def recipes(widths):
    for bits in widths:
        for symmetric in (True, False):
            if bits == 8 and not symmetric:
                continue
            for group in (128 if symmetric else 32, -1):
                yield {"method": "rtn", "bits": bits, "group_size": group, "symmetric": symmetric}


def run(program, work, windows, widths):
    config = {"model": str(MODEL), "run": str(work / "run"), "recipes": list(recipes(widths)),
              "calibration": {"text": str(MODEL / "calibration.jsonl"), "samples": 1, "sequence_length": WINDOW},
              "export": {"formats": ["gguf", "dense"], "dtype": "float32"},
              "evaluate": {"perplexity": [{"name": "test", "text": str(MODEL / "test.txt"), "window": WINDOW, "limit": windows}]}}
    work.mkdir(parents=True, exist_ok=True)
    (work / "config.yaml").write_text(json.dumps(config))
    subprocess.run([program, "run", str(work / "config.yaml")], check=True, stdout=subprocess.DEVNULL)
    subprocess.run([program, "export", str(work / "run"), "--check"], check=True, stdout=subprocess.DEVNULL)
    return work / "run"


def their_weights(path):
    """What gguf makes of every tensor, with rows in the model's order."""
    reader = gguf.GGUFReader(path)
    for tensor in reader.tensors:
        yield tensor, gguf.dequantize(tensor.data, tensor.tensor_type)


def compare(run_folder, name):
    ours = dict(dequantize.Export(run_folder / "export" / name / "dense").weights())
    export = dequantize.GgufExport(run_folder / "export" / name / "gguf")
    equal = 0
    kinds = set()
    for tensor, theirs in their_weights(run_folder / "export" / name / "gguf" / "model.gguf"):
        model_name = export.model_name(tensor.name)
        theirs = export.in_order(tensor.name, theirs)
        equal += np.array_equal(theirs.astype(np.float32), ours[model_name])
        if tensor.tensor_type not in (gguf.GGMLQuantizationType.F32, gguf.GGMLQuantizationType.F16):
            kinds.add(tensor.tensor_type.name)
    return equal, len(ours), kinds


def widened(source, target):
    """The same file with every tensor in float32."""
    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(target, "llama")
    for field in reader.fields.values():
        if field.name in ("general.architecture", "general.file_type") or field.name.startswith("GGUF."):
            continue
        kind, inner = field.types[0], field.types[-1] if len(field.types) > 1 else None
        writer.add_key_value(field.name, field.contents(), kind, inner)
    for tensor, weight in their_weights(source):
        writer.add_tensor(tensor.name, np.ascontiguousarray(weight, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def llama_perplexity(path, ids, vocabulary):
    """The mean over windows of the mean over predictions, as the program has it: each token's logarithm of probability behind its prefix."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = str(path)
    params.n_ctx, params.n_batch, params.n_parallel, params.n_gpu_layers = WINDOW, WINDOW, 1, 0
    params.warmup, params.verbosity = False, -1
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    server = xllamacpp.Server(params)
    losses = []
    for window in ids:
        total = 0.0
        for at in range(1, WINDOW):
            answer = server.handle_completions({
                "prompt": [int(id) for id in window[:at]], "n_predict": 1, "n_probs": vocabulary, "temperature": 0,
                "cache_prompt": True, "post_sampling_probs": False})
            found = answer["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
            total -= next(entry["logprob"] for entry in found if entry["id"] == window[at])
        losses.append(total / (WINDOW - 1))
    return math.exp(sum(losses) / len(losses))


def token_windows(windows):
    import sentencepiece

    processor = sentencepiece.SentencePieceProcessor(model_file=str(MODEL / "tokenizer.model"))
    ids = [processor.bos_id(), *processor.encode((MODEL / "test.txt").read_text())]
    return [ids[i * WINDOW : (i + 1) * WINDOW] for i in range(windows)]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--program", required=True)
    parser.add_argument("--work", type=pathlib.Path, required=True)
    parser.add_argument("--windows", type=int, default=2)
    parser.add_argument("--bits", type=int, action="append", help="of the recipes; default: 2, 3, 4 and 8")
    parser.add_argument("--llama", action="append", help="recipes that llama.cpp measures; default: one of each type")
    arguments = parser.parse_args()
    folder = run(arguments.program, arguments.work, arguments.windows, arguments.bits or (2, 3, 4, 8))
    ids = token_windows(arguments.windows)
    failed, seen = False, set()
    print("| recipe | type | tensors equal | perplexity | llama.cpp, as it is | llama.cpp, float32 |\n|---|---|---:|---:|---:|---:|")
    for path in sorted((folder / "export").iterdir()):
        name = path.name
        equal, tensors, kinds = compare(folder, name)
        failed |= equal != tensors
        figure = json.loads((folder / "results" / f"{name}.json").read_text())["perplexity"]["test"]
        cells = ["", ""]
        if name in arguments.llama if arguments.llama else not kinds <= seen:
            seen |= kinds
            file, wide = path / "gguf" / "model.gguf", arguments.work / "float32.gguf"
            wide.unlink(missing_ok=True)
            widened(file, wide)
            vocabulary = 1024
            measured = [llama_perplexity(each, ids, vocabulary) for each in (file, wide)]
            failed |= abs(measured[1] - figure) > 1e-4 * figure
            cells = [f"{value:.4f}" for value in measured]
        print(f"| {name} | {', '.join(sorted(kinds))} | {equal} of {tensors} | {figure:.4f} | {cells[0]} | {cells[1]} |", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
