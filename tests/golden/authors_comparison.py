#!/usr/bin/env python3
"""SignRound and AWQ beside their authors' programs on the bundled model: perplexity and seconds, in one run.

    authors_comparison.py --program build/bin/roundhouse [--methods signround awq] [--bits 4 3 2] [--symmetric]
                          [--autoround-python PYTHON] [--autoawq-python PYTHON]

Roundhouse quantizes first, as one process. Then auto-round and AutoAWQ get the same token windows (the run's calibration.h5),
the same settings and the same number of threads. The two cannot share an environment, so each has an interpreter of its own;
a method whose program is not given is reported as skipped. Perplexities are of test.txt in windows of 512 tokens; theirs by
gptq_reference.py, of the weights that their program leaves in the model. Seconds are those of quantizing: of all blocks for
Roundhouse (its journal; reading each block's weights and committing it are in them), of the call that quantizes for the others,
which have the model in memory by then.

This file needs nothing but Python; autoround_program.py and autoawq_program.py say what they need.
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys
import tempfile

HERE = pathlib.Path(__file__).resolve().parent
MODEL = HERE.parent / "data" / "tiny-world"


def recipe_of(method, bits, arguments):
    recipe = {"method": method, "bits": bits, "group_size": arguments.group_size, "name": f"{method}-w{bits}"}
    if method == "signround":
        grid = "S-full" if arguments.symmetric else "A-ar"
        recipe |= {"preset": "current", "iterations": arguments.iterations, "grid": grid, "samples": arguments.samples}
    return recipe


def run_ours(arguments, run):
    """Perplexity and seconds by recipe name."""
    config = {
        "model": str(MODEL), "run": str(run), "device": "cpu", "threads": arguments.threads,
        "calibration": {"text": str(MODEL / "calibration.jsonl"), "samples": arguments.samples,
                        "sequence_length": arguments.length, "seed": 42},
        "recipes": [recipe_of(method, bits, arguments) for method in arguments.methods for bits in arguments.bits],
        "export": {"formats": []},
        "evaluate": {"original": False,
                     "perplexity": [{"name": "test", "text": str(MODEL / "test.txt"), "window": 512}]},
    }
    run.parent.mkdir(parents=True, exist_ok=True)
    file = pathlib.Path(f"{run}.yaml")  # JSON is YAML
    file.write_text(json.dumps(config))
    subprocess.run([arguments.program, "run", file], check=True, stdout=sys.stderr)
    seconds = {}
    for line in (run / "journal.jsonl").read_text().splitlines():
        event = json.loads(line)
        if event.get("event") == "block":
            seconds[event["recipe"]] = seconds.get(event["recipe"], 0.0) + event["seconds"]
    result = {}
    for recipe in config["recipes"]:
        facts = json.loads((run / "results" / f"{recipe['name']}.json").read_text())
        result[recipe["name"]] = (facts["perplexity"]["test"], seconds[recipe["name"]])
    return result


def run_theirs(python, program, arguments, run, bits):
    """What the program prints: {"program", "perplexity", "seconds"}."""
    command = [python, HERE / f"{program}_program.py", "--calibration", run / "calibration.h5", "--bits", str(bits),
               "--group-size", str(arguments.group_size), "--threads", str(arguments.threads)]
    if program == "autoround":
        command += ["--iterations", str(arguments.iterations)] + ["--symmetric"] * arguments.symmetric
        command += ["--bf16"] * arguments.bf16 + ["--compile"] * arguments.compile
    elif arguments.duo_scaling:
        command.append("--duo-scaling")
    # Some machines tune OpenBLAS for programs that are not theirs.
    environment = {key: value for key, value in os.environ.items() if not key.startswith("OPENBLAS_")}
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment)
    return json.loads(done.stdout.strip().splitlines()[-1])


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--program", type=pathlib.Path, required=True)
    parser.add_argument("--methods", nargs="+", choices=["signround", "awq"], default=["signround", "awq"])
    parser.add_argument("--bits", type=int, nargs="+", default=[4, 3, 2])
    parser.add_argument("--group-size", type=int, default=128)
    parser.add_argument("--samples", type=int, default=128)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--iterations", type=int, default=200, help="of SignRound")
    parser.add_argument("--symmetric", action="store_true", help="SignRound's symmetric grid, the default of auto-round")
    parser.add_argument("--bf16", action="store_true", help="auto-round in bfloat16")
    parser.add_argument("--compile", action="store_true", help="auto-round with torch.compile")
    parser.add_argument("--duo-scaling", action="store_true", help="AutoAWQ's own formula for scales, not the paper's")
    parser.add_argument("--run", type=pathlib.Path, help="folder to keep Roundhouse's run in")
    parser.add_argument("--autoround-python", help="interpreter with auto-round")
    parser.add_argument("--autoawq-python", help="interpreter with AutoAWQ")
    arguments = parser.parse_args()
    programs = {"signround": ("autoround", arguments.autoround_python), "awq": ("autoawq", arguments.autoawq_python)}

    with tempfile.TemporaryDirectory() as folder:
        run = (arguments.run or pathlib.Path(folder) / "run").absolute()
        ours = run_ours(arguments, run)
        print(f"{arguments.samples} x {arguments.length} tokens, groups of {arguments.group_size}, {arguments.threads} threads")
        print(f"{'':14} {'perplexity':>10} {'theirs':>10} {'':>8} {'seconds':>8} {'theirs':>8} {'ratio':>6}")
        for method in arguments.methods:
            program, python = programs[method]
            for bits in arguments.bits:
                name = f"{method}-w{bits}"
                perplexity, seconds = ours[name]
                if not python:
                    print(f"{name:14} {perplexity:10.4f} {'skipped':>10} {'':>8} {seconds:8.1f}   no --{program}-python")
                    continue
                theirs = run_theirs(python, program, arguments, run, bits)
                print(f"{name:14} {perplexity:10.4f} {theirs['perplexity']:10.4f} "
                      f"{100 * (perplexity / theirs['perplexity'] - 1):+6.2f} % {seconds:8.1f} {theirs['seconds']:8.1f} "
                      f"{theirs['seconds'] / seconds:6.1f}   {theirs['program']}", flush=True)


if __name__ == "__main__":
    main()
