"""A run of the bundled model on the CPU and on an emulated GPU, in BF16 there: the figures must agree.

program_test.py --program FILE --source FOLDER
"""
import argparse
import json
import pathlib
import subprocess
import sys
import tempfile

# BF16 rounds a value by up to 2^-9 of itself, which moves the perplexity of these few windows by about 0.1 %.
MOST_OFF = 0.01


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--program", type=pathlib.Path, required=True)
    parser.add_argument("--source", type=pathlib.Path, required=True)
    options = parser.parse_args()
    data = options.source / "tests/data/tiny-world"
    perplexity = {}
    with tempfile.TemporaryDirectory(prefix="roundhouse-emulated-") as folder:
        text = pathlib.Path(folder) / "test.txt"
        text.write_text((data / "test.txt").read_text()[:1500])
        for device in ("cpu", "cuda"):
            run = pathlib.Path(folder) / device
            config = pathlib.Path(folder) / f"{device}.yaml"
            config.write_text(f"""
model: {data}
run: {run}
device: {device}
calibration: {{text: {data}/calibration.jsonl, samples: 4, sequence_length: 32, seed: 42, shards: 2}}
recipes: [{{method: gptq, bits: 4, group_size: 128}}]
evaluate: {{perplexity: [{{name: test, text: {text}, window: 64}}]}}
""")
            subprocess.run([options.program, "run", config], check=True)
            perplexity[device] = {path.stem: json.loads(path.read_text())["perplexity"]["test"]
                                  for path in (run / "results").glob("*.json")}
    if not perplexity["cpu"]:
        sys.exit("the run on the CPU left no results")
    for name, value in perplexity["cpu"].items():
        off = perplexity["cuda"][name] / value - 1
        print(f"{name:12} CPU {value:9.4f}   emulated GPU {perplexity['cuda'][name]:9.4f}   {100 * off:+.2f} %")
        if abs(off) > MOST_OFF:
            sys.exit(f"{name} is more than {100 * MOST_OFF:.0f} % off")


if __name__ == "__main__":
    main()
