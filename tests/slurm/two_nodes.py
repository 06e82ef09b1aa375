"""slurm/quantize_70b.sh on a real Slurm of two nodes with two tasks and two GPUs each, which are /dev/null: the program takes the CPU.
Preempted, out of time, with either node lost, with a node that does not see the checkout, and submitted twice. However it went, the
exported files must have the same bits as those of one process without Slurm.

two_nodes.py PROGRAM SOURCE_FOLDER [CASE...]        without names: all of them
"""
import hashlib
import json
import pathlib
import shutil
import subprocess
import sys
import time

import cluster as slurm
from cluster import wait_for

SKIPPED = 77

CONFIG = """
model: tests/data/tiny-world
run: set by the batch script
device: cpu
calibration: {text: tests/data/tiny-world/calibration.jsonl, samples: 32, sequence_length: 512}
recipes:
  - {method: rtn, bits: 4, group_size: 128}
  - {method: gptq, bits: 4, group_size: 128}
  - {method: gptq, bits: 3, group_size: 128}
threads: 1
export: {formats: [compressed-tensors]}
evaluate: {original: false, perplexity: [{name: test, text: tests/data/tiny-world/test.txt, window: 512, limit: 2}]}
"""
UNITS = 18  # 6 blocks x 3 recipes
# Units enough for longer than it takes Slurm to look at time limits, which it does every 30 s.
MANY_RECIPES = ", ".join(f"{{method: gptq, bits: 4, group_size: 128, name: r{i}}}" for i in range(30))

ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")


class Shared:
    """The file system of the cluster: a checkout, the program, runs."""

    def __init__(self, cluster, program, source):
        self.folder = cluster.root / "shared"
        self.checkout = self.folder / "checkout"
        shutil.copytree(source / "slurm", self.checkout / "slurm", ignore=shutil.ignore_patterns("site.sh"))
        (self.checkout / "tests").symlink_to(source / "tests")
        (self.checkout / "config.yaml").write_text(CONFIG)
        self.program = self.folder / "roundhouse"
        self.program.symlink_to(program)

    def run_of(self, name):
        return self.folder / "runs" / name


class Job:
    def __init__(self, cluster, shared, name, *options, **variables):
        self.cluster, self.name = cluster, name
        self.run = shared.run_of(variables.pop("run", name))
        self.log = cluster.root / f"{name}.job.log"
        self.number = cluster.submit(
            [f"--output={self.log}", "--nodes=2", "--ntasks-per-node=2", "--gpus-per-node=2", "--time=30", *options, "slurm/quantize_70b.sh"],
            folder=shared.checkout,
            environment={"ROUNDHOUSE": str(shared.program), "CONFIG": "config.yaml", "RUN": str(self.run), "CONFIRM_SECONDS": "5",
                         "RETRY_SECONDS": "3"} | variables)

    def blocks(self):
        return len(list(self.run.glob("recipes/*/block-*.h5")))

    def fact(self, name):
        return self.cluster.job(self.number).get(name, "")

    def state(self):
        return self.fact("JobState")

    def restarts(self):
        return int(self.fact("Restarts") or 0)

    def wait_for_middle(self):
        """Returns with RTN's blocks and some of GPTQ's done, and most of GPTQ's not."""
        wait_for(lambda: self.blocks() >= 7 or self.state() in ENDED, 120, f"{self.name}: the first blocks", every=0.02)
        done = self.blocks()
        if not 7 <= done < UNITS:
            raise AssertionError(f"{self.name}: {done} of {UNITS} blocks, {self.state()}: not in the middle")
        return done

    def wait_for_end(self, seconds=300, expected="COMPLETED"):
        def ended():
            state = self.state()
            return state if state in ENDED else ""
        state = wait_for(ended, seconds, f"{self.name} to end", every=0.25)
        if state != expected:
            raise AssertionError(f"{self.name}: {state}")

    def ends(self):
        """The exit codes that the program wrote down."""
        events = [json.loads(line) for line in (self.run / "journal.jsonl").read_text().splitlines()]
        return [event["exit_code"] for event in events if event["event"] == "end"]


def hashes(run):
    files = sorted(path for path in (run / "export").rglob("*") if path.is_file())
    return {str(path.relative_to(run)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def differing(expected, found):
    """What a job exported too much, too little or otherwise, in words."""
    differences = [f"{file} is missing" for file in sorted(expected.keys() - found.keys())]
    differences += [f"{file} is too much" for file in sorted(found.keys() - expected.keys())]
    differences += [f"{file} has other bits" for file in sorted(expected.keys() & found.keys())
                    if expected[file] != found[file]]
    return ", ".join(differences)


class Cases:
    def __init__(self, cluster, shared, reference, say):
        self.cluster, self.shared, self.reference, self.say = cluster, shared, reference, say
        self.job = None

    def submit(self, *options, **variables):
        self.job = Job(self.cluster, self.shared, *options, **variables)
        return self.job

    def finish(self, job, restarted=True):
        job.wait_for_end()
        restarts = job.restarts()
        if restarted and restarts == 0:
            raise AssertionError(f"{job.name}: never started again")
        differences = differing(self.reference, hashes(job.run))
        if differences:
            raise AssertionError(f"{job.name}: not what a process alone exported: {differences}")
        if job.ends()[-1] != 0:
            raise AssertionError(f"{job.name}: the program's last word is {job.ends()[-1]}")
        self.say(f"{job.name}: done after {restarts} restart(s), same bits")

    def middle(self, job, what):
        self.say(f"{job.name}: after {job.wait_for_middle()} of {UNITS} blocks: {what}")

    def submitted_twice(self):
        job = self.submit("submitted-twice")
        self.middle(job, "the same run submitted again")
        other = Job(self.cluster, self.shared, "second", "--nodes=1", "--partition=spare", "--nodelist=n3", run=job.name)
        other.wait_for_end(60, "FAILED")
        if other.fact("ExitCode") != "73:0" or other.restarts() > 0 or (job.run / "failures.log").exists():
            raise AssertionError(f"second: exit code {other.fact('ExitCode')}, {other.restarts()} restarts, failures noted: "
                                 f"{(job.run / 'failures.log').exists()}")
        self.finish(job, restarted=False)

    def preempted(self):
        job = self.submit("preempted", GPU_BIND="single:1")
        self.middle(job, "a job of higher priority takes both nodes")
        other = self.cluster.submit(["--partition=high", "--nodes=2", "--exclusive", "--output=/dev/null", "--wrap=sleep 1"])
        wait_for(lambda: self.cluster.job(other).get("JobState") in ("RUNNING", "COMPLETED"), 60, "the preempting job to start")
        self.finish(job)

    def out_of_time(self):
        job = self.submit("out-of-time", "--time=1", RECIPE=MANY_RECIPES)
        wait_for(lambda: job.restarts() == 1 or job.state() in ENDED, 90, "the time limit's warning and a new place in the queue")
        if job.state() in ENDED or job.ends() != [75]:
            raise AssertionError(f"out-of-time: {job.state()}, the program's last words are {job.ends()}")
        self.cluster.tell("scancel", job.number)
        self.say("out-of-time: stopped cleanly and put back")

    def lose(self, name, node):
        job = self.submit(name)
        self.middle(job, f"kill -9 of everything that was node {node}")
        self.cluster.kill_node(node)
        # Down, or found out already by the job itself: either way it must not run on.
        wait_for(lambda: job.state() != "RUNNING", 60, "Slurm to notice the lost node")
        self.cluster.start_node(node)
        self.finish(job)

    def second_node_lost(self):
        self.lose("second-node-lost", "n2")

    def first_node_lost(self):
        self.lose("first-node-lost", "n1")

    def mount_lost(self):
        probe = subprocess.run(["unshare", "--mount", "true"], capture_output=True, text=True)
        if probe.returncode != 0:
            self.say(f"mount-lost: skipped: {probe.stderr.strip()}")
            return
        self.cluster.kill_node("n2")
        self.cluster.start_node_without("n2", self.shared.folder)
        wait_for(lambda: self.cluster.tell("sinfo", "-h", "-p", "spare", "-t", "idle", "-o", "%D").strip() == "3", 60, "n2 to be back")
        job = self.submit("mount-lost", "--partition=spare")
        self.finish(job)
        if job.fact("ExcNodeList") != "n2" or job.fact("NodeList") != "n[1,3]":
            raise AssertionError(f"mount-lost: ended on {job.fact('NodeList')}, without {job.fact('ExcNodeList')}")
        self.cluster.kill_node("n2")
        self.cluster.start_node("n2")


def main():
    program, source = pathlib.Path(sys.argv[1]).resolve(), pathlib.Path(sys.argv[2]).resolve()
    reason = slurm.missing()
    if reason:
        print(f"skipped: {reason}")
        return SKIPPED

    cluster = slurm.Cluster()
    began = time.monotonic()

    def say(line):
        print(f"[{time.monotonic() - began:6.1f} s] {line}", flush=True)

    cases = None
    try:
        shared = Shared(cluster, program, source)
        alone = shared.run_of("alone")
        subprocess.run([shared.program, "run", "config.yaml", "--set", f"run={alone}"], cwd=shared.checkout, env=cluster.environment,
                       stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True)
        reference = hashes(alone)
        if not reference:
            raise AssertionError("alone: nothing exported")
        say(f"alone: done, {len(reference)} exported files")
        cluster.start()
        say("the nodes are up")
        cases = Cases(cluster, shared, reference, say)
        for name in sys.argv[3:] or ("submitted-twice", "preempted", "out-of-time", "second-node-lost", "first-node-lost", "mount-lost"):
            getattr(cases, name.replace("-", "_"))()
        return 0
    except BaseException as error:
        say(f"FAILED: {error}")
        if cases and cases.job:
            print("--- job", cluster.job(cases.job.number), sep="\n", flush=True)
        cluster.logs()
        raise
    finally:
        cluster.stop()


if __name__ == "__main__":
    sys.exit(main())
