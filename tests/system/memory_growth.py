"""A rank holds one block at a time: its peak memory must not grow with the number of blocks.

memory_growth.py --program FILE --source FOLDER

Quantizes and measures two synthetic models of the same shape, of 8 and of 32 blocks, and compares the peaks that their
journals tell. When the next block is read beside the work depends on the moment, so the peak is that of three runs each.
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


def peak_mib(program, tiny, folder, blocks):
    folder.mkdir(exist_ok=True)
    model, run = folder / f"model-{blocks}", folder / f"run-{blocks}"
    subprocess.run([program, "synth", "--like", "tiny-world", "--blocks", str(blocks), "--tokenizer", tiny, model], check=True)
    config = folder / f"{blocks}.yaml"
    config.write_text(CONFIG.format(model=model, run=run, tiny=tiny))
    subprocess.run([program, "run", config], check=True, stdout=subprocess.DEVNULL)
    events = [json.loads(line) for line in (run / "journal.jsonl").read_text().splitlines()]
    return next(event["peak_memory_mib"] for event in events if event["event"] == "done")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--program", type=pathlib.Path, required=True)
    parser.add_argument("--source", type=pathlib.Path, required=True)
    options = parser.parse_args()
    tiny = options.source / "tests" / "data" / "tiny-world"
    with tempfile.TemporaryDirectory(prefix="roundhouse-memory-") as folder:
        few, many = (max(peak_mib(options.program, tiny, pathlib.Path(folder) / str(again), blocks) for again in range(3)) for blocks in (8, 32))
    print(f"peak memory: {few:.1f} MiB for 8 blocks, {many:.1f} MiB for 32")
    if many > 1.1 * few:
        sys.exit("it grows with the number of blocks")


if __name__ == "__main__":
    main()
