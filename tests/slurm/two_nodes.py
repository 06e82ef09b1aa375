"""slurm/quantize_demo.sh on a real Slurm of two nodes: undisturbed, preempted, requeued, warned, with either node lost.
However it went, the exported files must have the same bits.

two_nodes.py PROGRAM SOURCE_FOLDER [DISTURBANCE...]        without names: all of them
"""
import hashlib
import pathlib
import sys
import time

import cluster as slurm
from cluster import wait_for

SKIPPED = 77

CONFIG = """
model: tests/data/tiny-world
run: set by the batch script
calibration: {text: tests/data/tiny-world/calibration.jsonl, samples: 32, sequence_length: 512}
recipes:
  - {method: rtn, bits: 4, group_size: 128}
  - {method: gptq, bits: 4, group_size: 128}
  - {method: gptq, bits: 3, group_size: 128}
  - {method: gptq, bits: 2, group_size: 128}
threads: 1
export: {formats: [compressed-tensors]}
evaluate: {original: false, perplexity: [{name: test, text: tests/data/tiny-world/test.txt, window: 512, limit: 4}]}
"""
UNITS = 24  # 6 blocks x 4 recipes


class Job:
    def __init__(self, cluster, program, source, name):
        self.cluster, self.name = cluster, name
        self.run = cluster.root / "runs" / name
        self.log = cluster.root / f"{name}.job.log"
        config = cluster.root / "config.yaml"
        config.write_text(CONFIG)
        self.number = cluster.submit(
            [f"--output={self.log}", "slurm/quantize_demo.sh"], folder=source,
            environment={"ROUNDHOUSE": str(program), "CONFIG": str(config), "RUN": str(self.run)})

    def blocks(self):
        return len(list(self.run.glob("recipes/*/block-*.h5")))

    def state(self):
        return self.cluster.job(self.number).get("JobState", "")

    def wait_for_middle(self):
        """Returns with RTN's blocks and some of GPTQ's done, and most of GPTQ's not."""
        wait_for(lambda: self.blocks() >= 8 or self.state() in ("COMPLETED", "FAILED"), 120,
                 f"{self.name}: the first blocks", every=0.02)
        done = self.blocks()
        if not 8 <= done < UNITS:
            raise AssertionError(f"{self.name}: {done} of {UNITS} blocks, {self.state()}: not in the middle")
        return done

    def wait_for_end(self, seconds=300):
        def ended():
            state = self.state()
            return state if state in ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL") else ""
        state = wait_for(ended, seconds, f"{self.name} to end", every=0.25)
        if state != "COMPLETED":
            raise AssertionError(f"{self.name}: {state}")

    def hashes(self):
        files = sorted(path for path in (self.run / "export").rglob("*") if path.is_file())
        return {str(path.relative_to(self.run)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def differing(expected, found):
    """What a job exported too much, too little or otherwise, in words."""
    differences = [f"{file} is missing" for file in sorted(expected.keys() - found.keys())]
    differences += [f"{file} is too much" for file in sorted(found.keys() - expected.keys())]
    differences += [f"{file} has other bits" for file in sorted(expected.keys() & found.keys())
                    if expected[file] != found[file]]
    return ", ".join(differences)


def preempt(cluster, job):
    other = cluster.submit(["--partition=high", "--nodes=2", "--exclusive", "--output=/dev/null", "--wrap=sleep 1"])
    wait_for(lambda: cluster.job(other).get("JobState") in ("RUNNING", "COMPLETED"), 60, "the preempting job to start")
    return "a job of higher priority takes both nodes"


def requeue(cluster, job):
    cluster.tell("scontrol", "requeue", job.number)
    return "scontrol requeue"


def warn(cluster, job):
    cluster.tell("scancel", "--batch", "--signal=USR1", job.number)
    return "SIGUSR1 to the batch script, as before the time limit"


def lose(node):
    def act(cluster, job):
        cluster.kill_node(node)
        # Down, or found out already by the job itself: either way it must not run on.
        wait_for(lambda: cluster.job(job.number).get("JobState") != "RUNNING" or job.state() == "", 60,
                 "Slurm to notice the lost node")
        cluster.start_node(node)
        return f"kill -9 of everything that was node {node}"
    return act


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

    job = None
    try:
        cluster.start()
        say("two nodes are up")
        job = Job(cluster, program, source, "undisturbed")
        job.wait_for_end()
        reference = job.hashes()
        if not reference or job.blocks() != UNITS:
            raise AssertionError(f"undisturbed: {len(reference)} exported files, {job.blocks()} blocks")
        say(f"undisturbed: done, {len(reference)} exported files")

        disturbances = {"preempted": preempt, "requeued": requeue, "warned": warn, "second-node-lost": lose("n2"),
                        "first-node-lost": lose("n1")}
        for name in sys.argv[3:] or disturbances:
            disturb = disturbances[name]
            job = Job(cluster, program, source, name)
            done = job.wait_for_middle()
            what = disturb(cluster, job)
            say(f"{name}: after {done} of {UNITS} blocks: {what}")
            job.wait_for_end()
            restarts = int(cluster.job(job.number)["Restarts"])
            if restarts == 0:
                raise AssertionError(f"{name}: never started again")
            differences = differing(reference, job.hashes())
            if differences:
                raise AssertionError(f"{name}: not what an undisturbed job exported: {differences}")
            say(f"{name}: done after {restarts} restart(s), same bits")
        return 0
    except BaseException as error:
        say(f"FAILED: {error}")
        if job:
            print("--- job", cluster.job(job.number), sep="\n", flush=True)
        cluster.logs()
        raise
    finally:
        cluster.stop()


if __name__ == "__main__":
    sys.exit(main())
