"""What slurm/quantize_70b.sh starts: its command line, run by the program, without Slurm.

settings.py PROGRAM SOURCE

In place of srun stands a script that runs its command. The configuration is configs/llama-2-70b.yaml, made to fit the bundled
model. MODEL, CALIBRATION and WIKITEXT must change which files are read and nothing else.
"""
import os
import pathlib
import re
import subprocess
import sys
import tempfile

SRUN = """#!/bin/bash
while [[ $1 == --* ]]; do shift; done
exec "$@"
"""


def main():
    program, source = (pathlib.Path(argument).resolve() for argument in sys.argv[1:])
    model = source / "tests/data/tiny-world"
    with tempfile.TemporaryDirectory(prefix="roundhouse-settings-") as name:
        folder = pathlib.Path(name)
        (folder / "srun").write_text(SRUN)
        (folder / "srun").chmod(0o755)
        text = (source / "configs/llama-2-70b.yaml").read_text()
        for old, new in (("2048", "128"), ("samples: 512", "samples: 16"), ("/models/Llama-2-70b-hf", str(model)),
                         ("/data/calibration.jsonl", str(model / "calibration.jsonl")),
                         ("/data/wikitext-2-raw/wiki.test.raw", str(folder / "rows.txt")), (", rows: true", ", limit: 2, rows: true")):
            assert old in text, f"{old} is not in configs/llama-2-70b.yaml"
            text = text.replace(old, new)
        (folder / "sweep.yaml").write_text(text)
        text, sweeps = re.subn(r"(?s)\nsweep:\n.*?\n\n", "\nrecipes: [{method: rtn, bits: 4}]\n\n", text)
        assert sweeps == 1, text
        (folder / "config.yaml").write_text(text)
        lines = (model / "test.txt").read_text().split(". ")[:400]
        (folder / "rows.txt").write_text("".join(f" {line} \n \n" for line in lines))

        def run(out, **variables):
            environment = dict(os.environ, PATH=f"{folder}:{os.environ['PATH']}", SLURM_SUBMIT_DIR=str(source), SLURM_JOB_ID="7", SLURM_JOB_NODELIST="here",
                               SLURM_CPUS_PER_TASK="1", ROUNDHOUSE=str(program), RUN=str(folder / out),
                               **{"CONFIG": str(folder / "config.yaml"), **variables})
            subprocess.run(["bash", source / "slurm/quantize_70b.sh"], env=environment, check=True)
            return (folder / out / "config.yaml").read_text().replace(str(folder / out), "RUN"), \
                (folder / out / "results/original.json").read_text()

        plain, results = run("plain")
        assert "rows: true" in plain, plain
        # The same files by other names.
        for link, target in (("model", model), ("calibration.jsonl", model / "calibration.jsonl"), ("wiki.txt", folder / "rows.txt")):
            (folder / link).symlink_to(target)
        named, other = run("named", MODEL=str(folder / "model"), CALIBRATION=str(folder / "calibration.jsonl"),
                           WIKITEXT=str(folder / "wiki.txt"))
        for link, target in (("calibration.jsonl", model / "calibration.jsonl"), ("wiki.txt", folder / "rows.txt"), ("model", model)):
            assert f'"{folder / link}"' in named, f"{link} is not in\n{named}"
            named = named.replace(f'"{folder / link}"', f'"{target}"')
        assert named == plain, f"{plain}\nbecame\n{named}"
        assert other == results, f"{results}\nbecame\n{other}"

        one, _ = run("one", CONFIG=str(folder / "sweep.yaml"), RECIPE="{method: rtn, bits: 3}")
        assert re.findall(r'"?name"?: "?([a-z]+-w[^",]*)', one) == ["rtn-w3g128"], f"RECIPE is not alone in\n{one}"
    print("the script's settings are those of its configuration")


if __name__ == "__main__":
    main()
