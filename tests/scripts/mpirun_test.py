"""scripts/mpirun.sh: told to end, it lets its processes stop cleanly, and their exit code is its own. Real mpirun; in place of the
program stands a script that stops as the program does.

mpirun_test.py SOURCE
"""
import os
import pathlib
import signal
import subprocess
import sys
import tempfile

PROGRAM = """#!/bin/bash
trap 'sleep 3; exit 75' USR1
echo listens
for ((i = 0; i < 200; ++i)); do sleep 0.1; done
"""


def main():
    source = pathlib.Path(sys.argv[1]).resolve()
    environment = dict(os.environ, OMPI_ALLOW_RUN_AS_ROOT="1", OMPI_ALLOW_RUN_AS_ROOT_CONFIRM="1")
    with tempfile.TemporaryDirectory(prefix="roundhouse-mpirun-") as folder:
        program = pathlib.Path(folder) / "program"
        program.write_text(PROGRAM)
        program.chmod(0o755)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
            process = subprocess.Popen([source / "scripts/mpirun.sh", "--oversubscribe", "-n", "2", program], env=environment,
                                       stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                                       preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))
            lines = 0
            while lines < 2:
                line = process.stdout.readline()
                assert line, "mpirun ended too soon"
                lines += "listens" in line
            process.send_signal(number)
            output, _ = process.communicate(timeout=60)
            assert process.returncode == 75, f"{number.name}: exit code {process.returncode}\n{output}"
            print(f"{number.name}: exit code 75")
        failing = subprocess.run([source / "scripts/mpirun.sh", "--oversubscribe", "-n", "1", "sh", "-c", "exit 3"], env=environment,
                                 capture_output=True)
        assert failing.returncode == 3, failing


if __name__ == "__main__":
    main()
