"""A job that is killed in the middle of a block of SignRound goes on in the middle of it, on any number of ranks, to the same bits.

tuning.py --program FILE --source FOLDER --mpiexec FILE
"""
import argparse
import json
import pathlib
import subprocess
import sys
import time

from kill_resume import descendants, kill
from small_run import Failure, SmallRun, check

RECIPES = "[{method: signround, bits: 3, group_size: 32, iterations: 120, batch_size: 2, name: learned}]"
ALWAYS = "checkpoint.interruption_hours=1e-12"  # saved after each step


class Tuning:
    def __init__(self, options):
        self.small = SmallRun(options)
        self.settings = ["--set", f"recipes={RECIPES}"]

    def steps(self):
        """(block, step) of what is saved."""
        found = self.small.run.glob("recipes/learned/progress/block-*/step-*/linear-0-row-0.h5")
        return sorted((int(path.parts[-3][6:]), int(path.parts[-2][5:])) for path in found)

    def kill_in_the_middle(self, ranks, at_least):
        """Of a block whose steps got so far. Returns where it was."""
        launcher = [] if ranks == 1 else [self.small.mpiexec, "--oversubscribe", "--bind-to", "none", "-n", str(ranks)]
        command = [*launcher, str(self.small.program), "run", str(self.small.config), *self.settings, "--set", ALWAYS]
        job = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, stdin=subprocess.DEVNULL,
                               cwd=self.small.folder, env=self.small.environment)
        deadline = time.monotonic() + 240
        while not any(place >= at_least for place in self.steps()):
            check(job.poll() is None, f"ended with {job.poll()} before {at_least}")
            check(time.monotonic() < deadline, f"never got to {at_least}: {self.steps()}")
            time.sleep(0.005)
        kill(descendants(job.pid))  # ranks go on for a while where only their launcher is gone
        job.wait()
        left = self.steps()
        check(left, "nothing was left of the block")
        return left

    def resumed(self):
        """(block, step) by the journal."""
        lines = (self.small.run / "journal.jsonl").read_text(errors="replace").splitlines()
        events = [json.loads(line) for line in lines if line.endswith("}")]
        return [(event["block"], event["step"]) for event in events if event["event"] == "block resumed"]

    def run(self):
        self.small.finish(*self.settings)
        expected = self.small.hashes()
        check(not any("progress" in name for name in expected), "progress of finished blocks is left")
        for first, second, third in ((1, 2, 3), (3, 1, 2)):
            subprocess.run(["rm", "-rf", str(self.small.run)], check=True)
            places = []
            for ranks, at_least in ((first, (0, 30)), (second, (0, 60)), (third, (1, 20))):
                places.append(self.kill_in_the_middle(ranks, at_least))
            # Saving no more, so that nothing covers up what the kills have left.
            self.small.finish(*self.settings, ranks=first)
            resumed = self.resumed()
            check(len(resumed) == len(places), f"resumed at {resumed} after kills at {places}")
            for place, left in zip(resumed, places):
                check(place in left, f"resumed at {place}, left were {left}")
            differing = self.differing(expected)
            check(not differing, f"other bits: {differing}")
            print(f"killed at {places}, resumed at {resumed}: same bits", flush=True)

    def differing(self, expected):
        found = self.small.hashes()
        settings = ("config.yaml", "identity.json")  # say how often a job is interrupted
        return sorted(name for name in expected.keys() | found.keys()
                      if expected.get(name) != found.get(name) and name not in settings)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--program", type=pathlib.Path, required=True)
    parser.add_argument("--source", type=pathlib.Path, required=True)
    parser.add_argument("--mpiexec", required=True)
    try:
        Tuning(parser.parse_args()).run()
    except Failure as failure:
        print(f"FAILED: {failure}", flush=True)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
