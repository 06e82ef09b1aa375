#!/usr/bin/env python3
"""Whole processes beside each other: SignRound and auto-round, AWQ and llm-compressor, GPTQ and llm-compressor and GPTQModel; ours in F32
and with cpu_precision: bf16.

    compare_speed.py --program build/bin/roundhouse --model MODEL --text CALIBRATION.jsonl --test TEXT --work WORK
                     [--auto-round PYTHON] [--llm-compressor PYTHON] [--gptqmodel PYTHON] [--methods gptq awq signround] ...

Same token windows (of our run's calibration.h5), bits, symmetric grid and groups; everything else as each program comes. Seconds are of a
whole process, from its start until its checkpoint is written: imports, reading the model, quantizing, packing; CPU seconds those of
all its threads and children. Perplexities are of the weights as each rounds them, by `roundhouse evaluate` in F32. Needs h5py; a
peer whose interpreter (quantize_one.py runs in it) is not given is left out.
"""

import argparse
import json
import os
import pathlib
import resource
import shutil
import subprocess
import sys
import time

import h5py

HERE = pathlib.Path(__file__).resolve().parent
PEERS = {"signround": ["auto-round"], "awq": ["llm-compressor"], "gptq": ["llm-compressor", "gptqmodel"]}
FORMATS = {"signround": "auto_round", "awq": "compressed-tensors", "gptq": "compressed-tensors"}


def say(line):
    print(line, file=sys.stderr, flush=True)


def timed(command, log):
    """Wall and CPU seconds of a process and all that it starts."""
    before, begin = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    subprocess.run(command, check=True, stdout=log, stderr=log)
    seconds, after = time.monotonic() - begin, resource.getrusage(resource.RUSAGE_CHILDREN)
    return seconds, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def recipe_of(method, arguments):
    recipe = {"method": method, "bits": arguments.bits, "group_size": arguments.group_size, "symmetric": True, "name": method}
    if method == "signround":
        recipe |= {"preset": "current", "iterations": arguments.iterations, "batch_size": arguments.batch_size,
                   "samples": arguments.samples}
    return recipe


def ours(method, precision, arguments, log):
    run = arguments.work / f"{method}-{precision}"
    shutil.rmtree(run, ignore_errors=True)
    config = arguments.work / f"{method}-{precision}.yaml"  # JSON is YAML
    config.write_text(json.dumps({
        "model": str(arguments.model), "run": str(run), "device": "cpu", "threads": arguments.threads, "cpu_precision": precision,
        "calibration": {"text": str(arguments.text), "samples": arguments.samples, "sequence_length": arguments.length, "seed": 42},
        "recipes": [recipe_of(method, arguments)], "export": {"formats": [FORMATS[method]]}, "evaluate": {"original": False}}))
    seconds, cpu = timed([arguments.program, "run", config], log)
    subprocess.run([arguments.program, "export", run, "--format", "dense"], check=True, stdout=log, stderr=log)
    return {"program": f"Roundhouse, {precision}", "seconds": seconds, "cpu_seconds": cpu}, run / "export" / method / "dense", run


def theirs(library, method, windows, arguments, log):
    work = arguments.work / f"{method}-{library}"
    shutil.rmtree(work, ignore_errors=True)
    job = {"model": str(arguments.model), "windows": windows, "bits": arguments.bits, "group_size": arguments.group_size,
           "iterations": arguments.iterations, "batch_size": arguments.batch_size, "threads": arguments.threads,
           "checkpoint": str(work / "checkpoint"), "dense": str(work / "dense")}
    python = getattr(arguments, library.replace("-", "_"))
    # Some machines tune OpenBLAS for programs that are not theirs.
    environment = {key: value for key, value in os.environ.items() if not key.startswith("OPENBLAS_")}
    environment["OMP_NUM_THREADS"] = str(arguments.threads)
    done = subprocess.run([python, HERE / "quantize_one.py", library, method], input=json.dumps(job), check=True,
                          stdout=subprocess.PIPE, stderr=log, text=True, env=environment)
    facts = json.loads(done.stdout.strip().splitlines()[-1])
    return {"program": facts["version"].replace("llmcompressor", "llm-compressor"), **facts}, work / "dense"


def perplexity(model, arguments):
    out = subprocess.run([arguments.program, "evaluate", model, "--text", arguments.test, "--window", str(arguments.window),
                          "--limit", str(arguments.windows)], check=True, capture_output=True, text=True).stdout
    return float(out.split("perplexity ")[1].split()[0])


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ("program", "model", "text", "test", "work"):
        parser.add_argument(f"--{name}", type=pathlib.Path, required=True)
    for library in ("auto-round", "llm-compressor", "gptqmodel"):
        parser.add_argument(f"--{library}", help="interpreter with it")
    parser.add_argument("--methods", nargs="+", choices=PEERS, default=list(PEERS))
    parser.add_argument("--precisions", nargs="+", choices=("f32", "bf16"), default=["f32", "bf16"],
                        help="ours; bf16 wants a processor that has such products")
    parser.add_argument("--samples", type=int, default=16)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--bits", type=int, default=4)
    parser.add_argument("--group-size", type=int, default=128)
    parser.add_argument("--iterations", type=int, default=200, help="of SignRound")
    parser.add_argument("--batch-size", type=int, default=8, help="of SignRound")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--window", type=int, default=512, help="of the test text")
    parser.add_argument("--windows", type=int, default=0, help="of the test text; 0: all")
    arguments = parser.parse_args()
    for name in ("program", "model", "text", "test", "work"):
        setattr(arguments, name, getattr(arguments, name).resolve())
    arguments.work.mkdir(parents=True, exist_ok=True)

    print(f"{arguments.samples} x {arguments.length} tokens, {arguments.bits} bits, symmetric, groups of {arguments.group_size}, "
          f"{arguments.threads} threads; original: {perplexity(arguments.model, arguments):.4f}\n")
    shares = "".join(f" time of Roundhouse, {precision} |" for precision in arguments.precisions)
    print(f"| method | program | wall, s | CPU, s | perplexity |{shares}\n|---|---|---:|---:|---:|{'---:|' * len(arguments.precisions)}")
    with open(arguments.work / "log", "a") as log:
        for method in arguments.methods:
            rows = []
            for precision in arguments.precisions:
                say(f"{method}: Roundhouse, {precision}")
                facts, dense, run = ours(method, precision, arguments, log)
                rows.append((facts, perplexity(dense, arguments)))
            with h5py.File(run / "calibration.h5") as file:
                windows = file["ids"][:].tolist()
            for library in PEERS[method]:
                if not getattr(arguments, library.replace("-", "_")):
                    continue
                say(f"{method}: {library}")
                facts, dense = theirs(library, method, windows, arguments, log)
                rows.append((facts, perplexity(dense, arguments)))
            for facts, value in rows:
                ratios = "".join(f" {facts['seconds'] / own['seconds']:.2f} |" for own, _ in rows[:len(arguments.precisions)])
                print(f"| {method} | {facts['program']} | {facts['seconds']:.1f} | {facts['cpu_seconds']:.1f} | {value:.4f} |{ratios}",
                      flush=True)


if __name__ == "__main__":
    main()
