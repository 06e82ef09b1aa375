"""The whole program on emulated GPUs, shown to two ranks in every way that launchers and containers know: which GPU each takes,
what the log and the journal say, and the same bits everywhere. EMULATED_GPUS names the GPUs that a process sees.

layouts_test.py --program FILE --source FOLDER --mpiexec FILE
"""
import argparse
import json
import os
import pathlib
import socket
import subprocess
import sys
import tempfile

SHARING = "2 ranks share 1 GPU"


def check(ok, what):
    if not ok:
        sys.exit(what)


class Runs:
    def __init__(self, options, folder):
        self.options, self.folder = options, folder

    def start(self, name, visible, mesh="{}", **environment):
        """A run with one rank for each of `visible`; its exit code and log."""
        config = self.folder / f"{name}.yaml"
        data = self.options.source / "tests/data/tiny-world"
        config.write_text(f"""
model: {self.folder}/model
run: {self.folder}/{name}
calibration: {{text: {data}/calibration.jsonl, samples: 4, sequence_length: 32, seed: 42, shards: 2}}
mesh: {mesh}
recipes: [{{method: gptq, bits: 4, group_size: 32}}]
export: {{formats: [compressed-tensors]}}
""")
        command = [self.options.mpiexec, "--oversubscribe", "--bind-to", "none"] if len(visible) > 1 else []
        for index, gpus in enumerate(visible):
            command += ([":"] if index else []) + (["-n", "1"] if len(visible) > 1 else [])
            command += ["env", f"EMULATED_GPUS={gpus}", str(self.options.program), "run", str(config)]
        done = subprocess.run(command, env=os.environ | environment, text=True, capture_output=True)
        print(f"--- {name}: {done.returncode}\n{done.stdout}{done.stderr}", flush=True)
        return done.returncode, done.stdout + done.stderr

    def good(self, name, visible, mesh="{}", **environment):
        """(log, journal's events, hashes of what was exported)"""
        code, log = self.start(name, visible, mesh, **environment)
        check(code == 0, f"{name}: exit code {code}")
        run = self.folder / name
        events = [json.loads(line) for line in (run / "journal.jsonl").read_text().splitlines()]
        sums = [path.read_text() for path in sorted((run / "export").rglob("SHA256SUMS"))]
        check(sums, f"{name}: nothing was exported")
        return log, events, sums


def gpus_taken(events):
    return [rank["gpu"] for event in events if event["event"] == "quantize" for rank in event["gpus"]]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--program", type=pathlib.Path, required=True)
    parser.add_argument("--source", type=pathlib.Path, required=True)
    parser.add_argument("--mpiexec", required=True)
    options = parser.parse_args()
    sys.path.append(str(options.source / "tests/system"))
    import small_models

    with tempfile.TemporaryDirectory(prefix="roundhouse-layouts-") as folder:
        runs = Runs(options, pathlib.Path(folder))
        small_models.write_mistral(pathlib.Path(folder) / "model", options.source)

        log, events, sums = runs.good("alone", ["a"])
        [gpu_a] = gpus_taken(events)
        check("share" not in log, "one rank on one GPU shares with nobody")

        for name, visible, different in (("all-see-both", ["a,b", "a,b"], True), ("one-each", ["a", "b"], True),
                                         ("instances", ["MIG-1", "MIG-2"], True), ("turned", ["a,b", "b,a"], True),
                                         ("one-sees-less", ["a,b", "a"], True), ("shared", ["a", "a"], False)):
            log, events, got = runs.good(name, visible)
            first, second = gpus_taken(events)
            check((first != second) == different, f"{name}: the ranks took {first} and {second}")
            check((SHARING in log) != different, f"{name}: the log is wrong about who shares")
            check(different or first == gpu_a, f"{name}: {first} is not {gpu_a}")
            check(got == sums, f"{name}: other bits than on one rank")
            check(("messages by host memory" in log) == (name in ("instances", "shared")), f"{name}: the way of messages")

        log, events, got = runs.good("shared-by-stages", ["a", "a"], "{pipeline: 2}")
        check("messages by host memory" in log and got == sums, "shared-by-stages: other bits than on one rank")

        code, log = runs.start("without", ["a", ""])
        check(code == 76, f"without: exit code {code}")
        check(f"bad node: {socket.gethostname()} (rank 1): device: auto: there is no GPU" in log,
              "without: the node is not named")

        log, events, got = runs.good("unpinnable", ["a"], EMULATED_PINNABLE_BYTES="0")
        failures = [event for event in events if event["event"] == "pin_failed"]
        check(len(failures) == 1, f"unpinnable: {len(failures)} events instead of one")
        check(failures[0]["bytes"] > 0 and "cudaHostRegister" in failures[0]["why"], f"unpinnable: {failures[0]}")
        check(log.count("cannot be pinned") == 1, "unpinnable: the log does not say so once")
        check(all(event["pinned_memory_mib"] == 0 for event in events if event["event"] == "block"), "unpinnable: pinned")
        check(got == sums, "unpinnable: other bits")


if __name__ == "__main__":
    main()
