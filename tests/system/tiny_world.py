"""The run of the README: configs/tiny-world.yaml on two ranks, and rounding at 3 and 2 bits to compare with.

tiny_world.py --program FILE --source FOLDER --mpiexec FILE

The unquantized model must have its known perplexity to 4 digits, GPTQ must beat rounding at every bit-width, and every figure must be
within 1 % of those of tests/golden/gptq_reference.json, which an independent program made from the same token windows.
"""
import argparse
import json
import os
import pathlib
import subprocess
import sys
import tempfile

RECIPES = ", ".join(f"{{method: {method}, bits: {bits}, group_size: 128}}" for bits in (4, 3, 2) for method in ("rtn", "gptq"))


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--program", type=pathlib.Path, required=True)
    parser.add_argument("--source", type=pathlib.Path, required=True)
    parser.add_argument("--mpiexec", required=True)
    options = parser.parse_args()
    reference = json.loads((options.source / "tests/golden/gptq_reference.json").read_text())
    expected = reference["perplexity"]

    environment = dict(os.environ, OMPI_MCA_btl_vader_single_copy_mechanism="none")
    if os.geteuid() == 0:
        environment.update(OMPI_ALLOW_RUN_AS_ROOT="1", OMPI_ALLOW_RUN_AS_ROOT_CONFIRM="1")
    wrong = []
    with tempfile.TemporaryDirectory(prefix="roundhouse-tiny-world-") as folder:
        run = pathlib.Path(folder) / "run"
        subprocess.run([options.mpiexec, "--oversubscribe", "--bind-to", "none", "-n", "2", options.program, "run",
                        "configs/tiny-world.yaml", "--set", f"run={run}", "--set", f"recipes=[{RECIPES}]",
                        "--set", "export.formats=[compressed-tensors]"],
                       cwd=options.source, env=environment, check=True)
        subprocess.run([options.program, "verify", run], check=True)
        results = {path.stem: json.loads(path.read_text()) for path in (run / "results").glob("*.json")}
        perplexity = {name: result["perplexity"]["test"] for name, result in results.items()}

    for name, value in sorted(expected.items()):
        off = perplexity[name] / value - 1
        print(f"{name:12} {perplexity[name]:10.4f}   independent {value:10.4f}   {100 * off:+.2f} %")
        if abs(off) > 0.01:
            wrong.append(f"{name} is more than 1 % off")
    if abs(perplexity["original"] - expected["original"]) > 1e-4:
        wrong.append("the unquantized model's perplexity is not the known one")
    if results["original"]["windows"]["test"] != reference["settings"]["windows"]:
        wrong.append("the text is cut into another number of windows")
    for bits in (4, 3, 2):
        if not perplexity[f"gptq-w{bits}g128"] < perplexity[f"rtn-w{bits}g128"]:
            wrong.append(f"GPTQ does not beat rounding at {bits} bits")
    if wrong:
        sys.exit("; ".join(wrong))


if __name__ == "__main__":
    main()
