"""A job in which one rank goes wrong ends as a whole, soon, with a code that says so and a line that says why.

job_end_test.py CASE PROGRAM MPIEXEC [MPIEXEC_FLAG...]
"""
import os
import re
import signal
import subprocess
import sys
import time
import uuid

# How the rank goes wrong -> what stderr says. mpirun itself reports the deaths that it notices.
SAYS = {
    "throw": r"\[rank 1\] the disk is full",
    "unwind": r"\[rank 1\] the disk is full",
    "exit": None,
    "kill": None,
    "stop": r"\[rank 0\] rank 1 \(.+, pid \d+\) does not answer for \d+\.\d s, last known in the guilty part",
    "stop_first": r"\[rank 1\] rank 0 \(.+, pid \d+\) does not answer for \d+\.\d s",
    "hang": r"\[rank 0\] rank 1 \(.+, pid \d+\) made no progress for \d+\.\d s in the guilty part",
    "deadlock": r"\[rank 0\] deadlock: all ranks wait .* rank 0 \(.+ rank 1 \(.+ rank 2 \(",
    "alone_throw": r"\[rank 0\] the disk is full",
    "alone_hang": r"\[rank 0\] rank 0 \(.+, pid \d+\) made no progress for \d+\.\d s in the guilty part",
    "drop": r"\[rank 1\] the device is broken",
    "clean": None,
}
LIMIT = 10.0  # seconds from the start of mpirun to its end; a rank goes wrong about 0.5 s in
MARK = "ROUNDHOUSE_TEST_RUN"


def survivors(run):
    """Processes with our mark in their environment: all that this run started, wherever they have got to."""
    wanted = f"{MARK}={run}".encode()
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit() and int(entry) != os.getpid():
            try:
                with open(f"/proc/{entry}/environ", "rb") as f:
                    if wanted in f.read().split(b"\0"):
                        found.append(int(entry))
            except OSError:
                pass  # gone meanwhile, or not ours
    return found


def main():
    case, program, mpiexec = sys.argv[1:4]
    run = uuid.uuid4().hex
    environment = {
        **os.environ,
        MARK: run,
        "OMPI_ALLOW_RUN_AS_ROOT": "1",
        "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
        "OMPI_MCA_btl_vader_single_copy_mechanism": "none",
    }
    command = [program, case]
    if not case.startswith("alone"):
        command = [mpiexec, "-n", "3", *sys.argv[4:], *command]

    begin = time.monotonic()
    job = subprocess.Popen(command, env=environment, text=True, start_new_session=True,
                           stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    problems = []
    left = []
    try:
        try:
            out, err = job.communicate(timeout=3 * LIMIT)
        except subprocess.TimeoutExpired:
            problems.append("the job does not end")
            os.killpg(job.pid, signal.SIGKILL)
            for pid in survivors(run):
                os.kill(pid, signal.SIGKILL)
            out, err = job.communicate()
        seconds = time.monotonic() - begin
        time.sleep(0.5)
        left = survivors(run)
    finally:
        for pid in survivors(run):
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass

    print(out)
    print(err)
    print(f"{case}: code {job.returncode} after {seconds:.1f} s")
    if left:
        problems.append(f"processes {left} outlive the job")
    if seconds > LIMIT:
        problems.append(f"the end took longer than {LIMIT} s")
    if case == "clean":
        if job.returncode != 0 or out.count("is through") != 3:
            problems.append("the clean job failed")
    else:
        if job.returncode == 0:
            problems.append("the job ends as if it had succeeded")
        if "is through" in out:
            problems.append("a rank got through")
    says = SAYS[case]
    if says and not re.search(says, err):
        problems.append(f"stderr does not say {says!r}")
    for problem in problems:
        print("FAILED:", problem)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
