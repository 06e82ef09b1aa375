"""Signals at any moment of a computation spoil nothing: hundreds of them, most while a matrix product is computed, and the program
ends as after one, with the bits of a run that had none.

signals.py --program PROGRAM --source SOURCE
"""
import argparse
import hashlib
import pathlib
import signal
import subprocess
import sys
import tempfile
import time

CONFIG = """
model: tests/data/tiny-world
run: {run}
device: cpu
calibration: {{text: tests/data/tiny-world/calibration.jsonl, samples: 32, sequence_length: 512}}
recipes:
  - {{method: gptq, bits: 4, group_size: 128}}
threads: 2
evaluate: {{original: false}}
"""


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--program", type=pathlib.Path, required=True)
    parser.add_argument("--source", type=pathlib.Path, required=True)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="roundhouse-signals-") as name:
        folder = pathlib.Path(name)

        def start(run):
            (folder / f"{run}.yaml").write_text(CONFIG.format(run=folder / run))
            return subprocess.Popen([arguments.program, "run", folder / f"{run}.yaml"], cwd=arguments.source, stdout=subprocess.DEVNULL,
                                    stderr=subprocess.PIPE, text=True)

        def hashes(run):
            return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in (folder / run).glob("recipes/*/block-*.h5")}

        quiet = start("quiet")
        _, errors = quiet.communicate()
        assert quiet.returncode == 0, errors

        sent = 0
        for after in (0.2, 0.4, 0.6, None):  # seconds from the start of quantizing; None: no signals
            process = start("disturbed")
            journal = folder / "disturbed/journal.jsonl"
            before = journal.read_text().count('"quantize"') if journal.exists() else 0
            while after and process.poll() is None and not (journal.exists() and journal.read_text().count('"quantize"') > before):
                time.sleep(0.01)
            time.sleep(after or 0)
            while after and process.poll() is None:
                process.send_signal(signal.SIGUSR1 if sent % 2 else signal.SIGTERM)
                sent += 1
                time.sleep(0.002)
            _, errors = process.communicate()
            assert process.returncode in ((0, 75) if after else (0,)), f"exit code {process.returncode} after {sent} signals: {errors}"
        assert hashes("disturbed") == hashes("quiet"), "other bits"
        print(f"{sent} signals, the same bits")


if __name__ == "__main__":
    sys.exit(main())
