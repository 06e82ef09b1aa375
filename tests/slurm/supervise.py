"""What slurm/supervise.sh does at each end of a step, without Slurm: srun and scontrol are scripts that do as told.

supervise.py SOURCE [CASE...]        without names: all of them
"""
import os
import pathlib
import shutil
import signal
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
# REFUSED: what Slurm does not do.
SCONTROL = """#!/bin/bash
echo "$*" >>"$(dirname "$0")/scontrol-calls"
case $* in
  "show hostnames"*) printf '%s\\n' n1 n2 ;;
  "show job"*) echo "JobId=7 ReqNodeList=(null) ExcNodeList=${EXCLUDED:-(null)} NodeList=n[1-2]" ;;
esac
[[ ! ${REFUSED:-} || $* != $REFUSED ]]
"""
JOB = """
set -euo pipefail
cd "$FOLDER"
source "$SOURCE/slurm/supervise.sh"
settings_of_job=(RUN MODEL)
batch_script=slurm/some.sh
supervise "$RUN" srun --mpi=pmix roundhouse run config.yaml
"""
# A program that works until it is asked to stop, for 10 s at most; it may be deaf at first.
WORK = "for ((i = 0; i < 100; ++i)); do sleep 0.1; done; exit 3"


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

    def begin(self, *steps, output=subprocess.PIPE, **variables):
        for old in [*self.bin.glob("step-*"), self.bin / "calls", self.bin / "scontrol-calls"]:
            old.unlink(missing_ok=True)
        for number, step in enumerate(steps, 1):
            (self.bin / f"step-{number}").write_text(step)
        environment = dict(os.environ, PATH=f"{self.bin}:{os.environ['PATH']}", SOURCE=str(self.source), RUN=str(self.run),
                           FOLDER=str(self.folder), SLURM_JOB_ID=str(self.number), SLURM_JOB_NODELIST="n[1-2]",
                           SLURM_JOB_NUM_NODES="2", CONFIRM_SECONDS="2", RETRY_SECONDS="0")
        if self.restarts:
            environment["SLURM_RESTART_COUNT"] = str(self.restarts)
        self.restarts += 1
        return subprocess.Popen(["bash", "-c", JOB], env=environment | variables, stdout=output, stderr=subprocess.STDOUT, text=True)

    def end(self, process):
        """The exit code; what was printed is in `output`."""
        self.output = process.communicate(timeout=60)[0] or ""
        return process.returncode

    def start(self, *steps, **options):
        return self.end(self.begin(*steps, **options))

    def launches(self):
        return len(self._text("calls").splitlines())

    def told(self):
        """What Slurm was told to do, questions aside."""
        return [line for line in self._text("scontrol-calls").splitlines() if not line.startswith("show")]

    def requeued(self):
        return f"requeue {self.number}" in self.told()

    def _text(self, name):
        path = self.bin / name
        return path.read_text() if path.exists() else ""


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


def in_use(job):
    code = job.start('echo "roundhouse: the run is in use by job 6"; exit 73')
    expect(job, code == 73, "another job's run is final, with an exit code of its own")
    expect(job, job.launches() == 1 and not job.told(), "no second launch, not put back")
    expect(job, not job.run.exists(), "nothing is written there")


def bad_node(job):
    code = job.start('echo "[rank 0] bad node: n2.cluster.org (ranks 2, 3): no driver" >&2; exit 143', EXCLUDED="n[7-8]")
    expect(job, code not in (0, 2), "one bad node is not wrong input")
    expect(job, job.launches() == 1, "no second launch on that node")
    expect(job, job.told() == ["requeue 7", "update JobId=7 ExcNodeList=n[7-8],n2"], "put back without it and those before")


def bad_node_cannot_be_left_out(job):
    code = job.start('echo "bad node: n2: no driver"; exit 76', REFUSED="update*")
    expect(job, code == 76 and job.requeued(), "put back")
    expect(job, "scontrol update JobId=7 ExcNodeList=n2" in job.output, "the command is printed")
    code = job.start('echo "bad node: n2: no driver"; exit 76', REFUSED="requeue*")
    expect(job, code == 76, "not put back")
    expect(job, "--exclude=n2" in job.output, "the command leaves the node out")


def all_nodes_bad(job):
    code = job.start('echo "[rank 0] bad node: n1 (rank 0): no model; bad node: n2 (rank 1): no model"; exit 76')
    expect(job, code == 2 and not job.told(), "what all nodes say is not about nodes")


def bad_nodes_without_end(job):
    starts = 0
    while job.start('echo "bad node: n2: no driver"; exit 76') == 76 and job.requeued():
        starts += 1
        expect(job, starts < 10, "not for ever")
    expect(job, starts == 5, "the sixth is final")


def stops_without_progress(job):
    starts = 0
    while job.start("end 75; exit 75") == 75 and job.requeued():
        starts += 1
        expect(job, starts < 10, "not for ever")
    expect(job, starts == 5, "the sixth start without progress is final")
    expect(job, "sbatch" in job.output, "says how to go on")


def stops_with_progress(job):
    for start in range(8):
        # An export's file, a result that grows, a snapshot of a resumed forward pass.
        made = (f"mkdir -p $RUN/export/r/gptq; echo x >$RUN/export/r/gptq/model-{start}.safetensors",
                "mkdir -p $RUN/results; echo x >>$RUN/results/r.json",
                f"mkdir -p $RUN/recipes/r/activations/after-{start}; echo x >$RUN/recipes/r/activations/after-{start}/shard-00.h5")
        expect(job, job.start(made[start % 3] + "; end 75; exit 75") == 75 and job.requeued(), "put back")
        expect(job, "failure" not in job.output, "a clean stop with progress is no failure")


def what_is_no_progress(job):
    # Half-written files, and what every start writes.
    for start in range(6):
        made = f"mkdir -p $RUN/export/r/gptq.partial $RUN/scratch $RUN/recipes/r; echo x >$RUN/export/r/gptq.partial/{start}; " \
               f"echo x >$RUN/scratch/{start}; echo x >$RUN/recipes/r/{start}.tmp; echo x >>$RUN/model.json"
        code = job.start(made + "; end 75; exit 75")
    expect(job, code == 75 and not job.requeued(), "the sixth start without progress is final")


def failures(job):
    steps = "exit 1"
    expect(job, job.start(steps) == 1 and job.launches() == 2 and job.requeued(), "twice here, then elsewhere")
    expect(job, job.start(steps) == 1 and job.launches() == 2 and job.requeued(), "again")
    expect(job, job.start(steps) == 1 and job.launches() == 2 and not job.requeued(), "the sixth is final")
    # Another submission begins from nothing.
    other = Job(job.source, job.folder, number=8)
    expect(other, other.start(steps) == 1 and other.launches() == 2 and other.requeued(), "failures of another submission do not count")
    # So does this one after progress.
    (job.run / "export/r").mkdir(parents=True)
    (job.run / "export/r/gptq.json").write_text("{}")
    expect(job, job.start(steps) == 1 and job.launches() == 2 and job.requeued(), "failures before progress do not count")
    expect(job, "failure 2 of 6" in job.output, "counted since the progress")


def progress_between_failures(job):
    made = "mkdir -p $RUN/recipes/r; echo x >$RUN/recipes/r/block-000$(wc -l <$folder/calls).h5; exit 1"
    job.start(*[made] * 9, "end 0; exit 0")
    expect(job, job.launches() == 10, "each failure after a block is the first")


def full_disk(job):
    job.run.mkdir()
    (job.run / "failures.log").symlink_to("/dev/full")
    code = job.start("exit 1")
    expect(job, code == 1 and job.launches() == 2, "tried again, as ever")
    expect(job, "failed with exit code 1, 0 blocks finished, failure 2 of 6" in job.output, "its last line")
    expect(job, not job.told(), "what cannot be counted is not put back")
    expect(job, "failures.log cannot be written" in job.output and "sbatch" in job.output, "says why and how to go on")


def full_disk_of_the_log(job):
    with open("/dev/full", "w") as full:
        expect(job, job.start("exit 2", output=full) == 2, "final")
        expect(job, job.told()[-1].startswith("update JobId=7 Comment=not tried again"), "Slurm keeps the last line")
        expect(job, job.start("echo line; echo line; end 0; exit 0", output=full) == 0, "a log without room does not end the program")


def cannot_be_put_back(job):
    for variables in ({"REFUSED": "requeue*"}, {"PATH": ""}):
        if "PATH" in variables:
            (job.bin / "scontrol").write_text("#!/nonexistent\n")  # as if it were not there
        job.run.mkdir(exist_ok=True)
        (job.run / "recipes").mkdir(exist_ok=True)
        variables = {"MODEL": "/models/a b"} | {key: value for key, value in variables.items() if key != "PATH"}
        code = job.start("mkdir -p $RUN/recipes/r; mktemp $RUN/recipes/r/XXXXXX.h5; end 75; exit 75", **variables)
        expect(job, code == 75, "work is left")
        command = f"cd {job.folder} && RUN={job.run} MODEL=/models/a\\ b sbatch --nodes=2 slurm/some.sh"
        expect(job, command in job.output, f"prints {command}")


def too_many_restarts(job):
    job.restarts = 100
    expect(job, job.start("exit 1") == 1 and not job.requeued() and "sbatch" in job.output, "MAX_RESTARTS ends it")


def signalled(job, number, deaf):
    stop = f"trap 'end 75; exit 75' USR1; echo works; {WORK}"
    process = job.begin(f"trap '' USR1; echo starts; sleep {deaf}; " + stop)
    line = process.stdout.readline()
    while "starts" not in line:
        line = process.stdout.readline()
    process.send_signal(number)
    return job.end(process)


def warned(job):
    expect(job, signalled(job, signal.SIGUSR1, 0) == 75 and job.requeued(), "the warning reaches the program")
    job.start("end 0; exit 0")


def warned_while_starting(job):
    expect(job, signalled(job, signal.SIGUSR1, 2) == 75 and job.requeued(), "the warning reaches a program that did not listen yet")


def terminated(job):
    expect(job, signalled(job, signal.SIGTERM, 0) == 75, "a clean stop")
    expect(job, not job.told(), "Slurm itself requeues a preempted job")
    expect(job, not (job.run / "failures.log").exists(), "which is no failure")


class Launch:
    """A checkout without a program, whose batch scripts are run; srun notes how it was called."""

    def __init__(self, job):
        self.job, self.root = job, job.folder / "checkout"
        shutil.copytree(job.source / "slurm", self.root / "slurm", ignore=shutil.ignore_patterns("site.sh"))
        for name, text in (("srun", 'printf "%s\\n" "$@"; echo "cpus $SRUN_CPUS_PER_TASK"; echo "net $NCCL_SOCKET_IFNAME"; exit 2'),
                           ("sbatch", 'echo "sbatch $*" >>"$(dirname "$0")/sbatch-calls"; wc -l <"$(dirname "$0")/sbatch-calls"')):
            (job.bin / name).write_text("#!/bin/bash\n" + text + "\n")
            (job.bin / name).chmod(0o755)

    def __call__(self, *command, **variables):
        environment = dict(os.environ, PATH=f"{self.job.bin}:{os.environ['PATH']}", SLURM_JOB_ID="7", SLURM_JOB_NODELIST="n[1-2]",
                           SLURM_SUBMIT_DIR=str(self.root), SLURM_JOB_NUM_NODES="2", NCCL_SOCKET_IFNAME="") | variables
        done = subprocess.run(command, cwd=self.root, env=environment, capture_output=True, text=True, timeout=60)
        self.job.output = done.stdout + done.stderr
        return done.returncode


def how_it_is_launched(job):
    launch = Launch(job)
    per_node = {"SLURM_NTASKS_PER_NODE": "8", "SLURM_JOB_CPUS_PER_NODE": "96(x3),64"}
    launch("bash", "slurm/quantize_70b.sh", **per_node)
    lines = job.output.splitlines()
    expect(job, {"--mpi=pmix", "--gpu-bind=none", "cpus 8"} <= set(lines), "the smallest node's processors, shared by its tasks")
    launch("bash", "slurm/quantize_70b.sh", SRUN_MPI="pmix_v4", GPU_BIND="single:1", SLURM_CPUS_PER_TASK="5", **per_node)
    lines = job.output.splitlines()
    expect(job, {"--mpi=pmix_v4", "--gpu-bind=single:1", "cpus 5"} <= set(lines), "as it was told")
    (launch.root / "slurm/site.sh").write_text("[[ $undefined ]]\nsrun_options+=(--container-image=x.sqsh)\nexport NCCL_SOCKET_IFNAME=ib0\n")
    launch("bash", "slurm/quantize_70b.sh", **per_node)
    lines = job.output.splitlines()
    expect(job, {"--container-image=x.sqsh", "--gpu-bind=none", "net ib0"} <= set(lines), "what the site's file says")
    (launch.root / "slurm/site.sh").write_text('launcher=(srun "--instead of mpirun")\n')
    launch("bash", "slurm/quantize_demo.sh", **per_node)
    expect(job, "--instead of mpirun" in job.output.splitlines(), "another launcher")


def node_without_the_program(job):
    launch = Launch(job)
    (job.bin / "srun").write_text('#!/bin/bash\nwhile [[ $1 == --* ]]; do shift; done\nexport SLURMD_NODENAME=n2\nexec "$@"\n')
    code = launch("bash", "slurm/quantize_demo.sh", SLURM_CPUS_PER_TASK="1")
    expect(job, code == 76, "not wrong input")
    expect(job, "update JobId=7 ExcNodeList=n2" in job.told(), "put back without the node")


def sweep(job):
    launch = Launch(job)
    (launch.root / "recipes.txt").write_text("{method: rtn, bits: 4}\n{method: gptq, bits: 3}\n")
    at = {"SLURM_CPUS_PER_TASK": "1", "RECIPES": "recipes.txt", "RUN": "runs/s"}
    launch("bash", "slurm/sweep.sh", SLURM_ARRAY_TASK_ID="2", **at)
    lines = job.output.splitlines()
    expect(job, {"run=runs/s/2", "recipes=[{method: gptq, bits: 3}]"} <= set(lines), "the second recipe, in a folder of its own")
    expect(job, launch("bash", "slurm/sweep.sh", SLURM_ARRAY_TASK_ID="3", **at) == 2, "there is no third")


def chain(job):
    launch = Launch(job)
    expect(job, launch("slurm/chain.sh", "3", "--time=60", "slurm/quantize_70b.sh") == 0, "submitted")
    calls = (job.bin / "sbatch-calls").read_text().splitlines()
    expect(job, len(calls) == 3 and "--dependency" not in calls[0], "three jobs")
    expect(job, all(call.endswith(f"--dependency=afternotok:{n} --time=60 slurm/quantize_70b.sh") and "--kill-on-invalid-dep=yes" in call
                    for n, call in enumerate(calls[1:], 1)), f"each after the one before: {calls}")
    expect(job, launch("slurm/chain.sh", "slurm/quantize_70b.sh") == 2, "how many, is not said")


CASES = {case.__name__.replace("_", "-"): case for case in (
    confirmed, false_zero, old_word, late_word, killed_when_done, false_stop, wrong_input, in_use, bad_node, bad_node_cannot_be_left_out,
    all_nodes_bad, bad_nodes_without_end, stops_without_progress, stops_with_progress, what_is_no_progress, failures,
    progress_between_failures, full_disk, full_disk_of_the_log, cannot_be_put_back, too_many_restarts, warned, warned_while_starting,
    terminated, how_it_is_launched, node_without_the_program, sweep, chain)}


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
