"""What slurm/supervise.sh does at each end of a step, without Slurm: srun and scontrol are scripts that do as told.

supervise.py SOURCE [CASE...]        without names: all of them
"""
import os
import pathlib
import subprocess
import sys
import tempfile

# The n-th call runs the n-th step of the case, the last one again and again. `end CODE` is the program's last act.
SRUN = """#!/bin/bash
folder=$(dirname "$0")
end() { mkdir -p "$RUN"; echo '{"event":"end","exit_code":'$1',"launch":"'$ROUNDHOUSE_LAUNCH'","time":"x"}' >>"$RUN/journal.jsonl"; }
echo x >>"$folder/calls"
step=$folder/step-$(wc -l <"$folder/calls")
[[ -e $step ]] || step=$(ls "$folder"/step-* | sort -V | tail -n 1)
source "$step"
"""
SCONTROL = """#!/bin/bash
echo "$*" >>"$(dirname "$0")/scontrol-calls"
"""
JOB = """
set -euo pipefail
source "$SOURCE/slurm/supervise.sh"
supervise "$RUN" srun --mpi=pmix roundhouse run config.yaml
"""


class Job:
    """A submission, in a folder of its own."""

    def __init__(self, source, folder, number=7):
        self.source, self.folder, self.number = source, folder, number
        self.run = folder / "run"
        self.restarts = 0
        self.bin = folder / f"bin-{number}"
        self.bin.mkdir()
        for name, text in (("srun", SRUN), ("scontrol", SCONTROL)):
            (self.bin / name).write_text(text)
            (self.bin / name).chmod(0o755)

    def start(self, *steps, **variables):
        """The exit code and what was printed."""
        for old in [*self.bin.glob("step-*"), self.bin / "calls", self.bin / "scontrol-calls"]:
            old.unlink(missing_ok=True)
        for number, step in enumerate(steps, 1):
            (self.bin / f"step-{number}").write_text(step)
        environment = dict(os.environ, PATH=f"{self.bin}:{os.environ['PATH']}", SOURCE=str(self.source), RUN=str(self.run),
                           SLURM_JOB_ID=str(self.number), SLURM_JOB_NODELIST="here", MAX_RESTARTS="100",
                           CONFIRM_SECONDS="2", RETRY_SECONDS="0", **variables)
        if self.restarts:
            environment["SLURM_RESTART_COUNT"] = str(self.restarts)
        done = subprocess.run(["bash", "-c", JOB], env=environment, capture_output=True, text=True, timeout=60)
        self.restarts += 1
        self.output = done.stdout + done.stderr
        return done.returncode

    def launches(self):
        return self._lines("calls")

    def requeued(self):
        return "requeue " + str(self.number) in (self._text("scontrol-calls")).splitlines()

    def _text(self, name):
        path = self.bin / name
        return path.read_text() if path.exists() else ""

    def _lines(self, name):
        return len(self._text(name).splitlines())


def expect(job, condition, what):
    if not condition:
        raise AssertionError(f"{what}\n--- output\n{job.output}")


def confirmed(job):
    expect(job, job.start("end 0; exit 0") == 0, "a 0 that the program confirms is done")
    expect(job, job.launches() == 1, "one launch is enough")


def false_zero(job):
    expect(job, job.start("exit 0", "end 0; exit 0") == 0, "done at the second launch")
    expect(job, job.launches() == 2, "srun's 0 alone is not done")


def old_word(job):
    expect(job, job.start("end 0; exit 0") == 0, "done")
    job.restarts = 0  # the same submission once more, as far as one can tell
    expect(job, job.start("exit 0", "exit 0", "end 0; exit 0") != 0, "not done by the word of an earlier launch")
    expect(job, job.requeued(), "put back after two failed launches")


def late_word(job):
    expect(job, job.start("(sleep 1; end 0) >/dev/null 2>&1 & exit 0") == 0, "the word arrives late over a network file system")
    expect(job, job.launches() == 1, "one launch is enough")


def killed_when_done(job):
    expect(job, job.start("end 0; exit 137") == 0, "the program's word counts where the launcher says otherwise")
    expect(job, job.launches() == 1, "one launch is enough")


def false_stop(job):
    expect(job, job.start("exit 75", "end 75; exit 75") == 75, "stopped at the second launch")
    expect(job, job.launches() == 2, "srun's 75 alone is not a clean stop")
    expect(job, job.requeued(), "put back")


def wrong_input(job):
    expect(job, job.start("exit 2") == 2, "wrong input is final")
    expect(job, job.launches() == 1 and not job.requeued(), "and not tried again")


CASES = {case.__name__.replace("_", "-"): case
         for case in (confirmed, false_zero, old_word, late_word, killed_when_done, false_stop, wrong_input)}


def main():
    source = pathlib.Path(sys.argv[1]).resolve()
    failed = 0
    for name in sys.argv[2:] or CASES:
        with tempfile.TemporaryDirectory(prefix="roundhouse-supervise-") as folder:
            try:
                CASES[name](Job(source, pathlib.Path(folder)))
                print(f"{name}: as it should be")
            except AssertionError as error:
                failed += 1
                print(f"{name}: FAILED: {error}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
