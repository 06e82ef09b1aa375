"""A rank holds one block at a time: its peak memory must not grow with the number of blocks.

memory_growth.py --program FILE --source FOLDER

Quantizes and measures two synthetic models of the same shape, of 8 and of 32 blocks, and compares the peaks that their
journals tell. The peak itself is small here, so what it may grow by is seen against the weights that were added: a little of
each file stays mapped, the pages around norms.
"""
import argparse
import json
import pathlib
import subprocess
import sys
import tempfile

CONFIG = """
model: {model}
run: {run}
calibration: {{text: {tiny}/calibration.jsonl, samples: 16, sequence_length: 128, seed: 1}}
recipes: [{{method: gptq, bits: 4, group_size: 128}}]
threads: 1
export: {{formats: [compressed-tensors]}}
evaluate: {{perplexity: [{{name: test, text: {tiny}/test.txt, window: 128, limit: 16}}]}}
"""


MOST = 0.25  # of the added weights


def peak_mib(program, tiny, folder, blocks):
    """And the size of the weights."""
    model, run = folder / f"model-{blocks}", folder / f"run-{blocks}"
    subprocess.run([program, "synth", "--like", "tiny-world", "--blocks", str(blocks), "--tokenizer", tiny, model], check=True)
    config = folder / f"{blocks}.yaml"
    config.write_text(CONFIG.format(model=model, run=run, tiny=tiny))
    subprocess.run([program, "run", config], check=True, stdout=subprocess.DEVNULL)
    events = [json.loads(line) for line in (run / "journal.jsonl").read_text().splitlines()]
    weights = sum(file.stat().st_size for file in model.glob("*.safetensors")) / 2**20
    return next(event["peak_memory_mib"] for event in events if event["event"] == "done"), weights


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--program", type=pathlib.Path, required=True)
    parser.add_argument("--source", type=pathlib.Path, required=True)
    options = parser.parse_args()
    tiny = options.source / "tests" / "data" / "tiny-world"
    with tempfile.TemporaryDirectory(prefix="roundhouse-memory-") as folder:
        (few, small), (many, large) = (peak_mib(options.program, tiny, pathlib.Path(folder), blocks) for blocks in (8, 32))
    print(f"peak memory: {few:.1f} MiB for 8 blocks, {many:.1f} MiB for 32, whose weights are {large - small:.1f} MiB more")
    if many - few > MOST * (large - small):
        sys.exit("it grows with the number of blocks")


if __name__ == "__main__":
    main()
