"""`cmake --install` puts a program that runs from where it is installed, with the configurations that are installed beside it.

install.py --build FOLDER --cmake FILE
"""
import argparse
import os
import pathlib
import re
import subprocess
import sys
import tempfile


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--build", type=pathlib.Path, required=True)
    parser.add_argument("--cmake", required=True)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="roundhouse-install-") as name:
        prefix, run = pathlib.Path(name) / "prefix", pathlib.Path(name) / "run"
        subprocess.run([options.cmake, "--install", options.build, "--prefix", prefix], stdout=subprocess.DEVNULL, check=True)
        program, data = prefix / "bin" / "roundhouse", prefix / "share" / "roundhouse"
        # Nothing of the shell that built it: only what Open MPI asks for.
        environment = {key: value for key, value in os.environ.items() if key.startswith("OMPI_") or key in ("PATH", "HOME", "TMPDIR")}

        def call(*arguments):
            return subprocess.run([program, *arguments], cwd=data, env=environment, stdout=subprocess.PIPE, text=True, check=True).stdout

        said = call("--version")
        assert re.fullmatch(r"roundhouse \d+\.\d+\.\d+ \(commit \S+, \w+, with(out)? CUDA\)\n", said), said
        for line in subprocess.run(["ldd", program], capture_output=True, text=True, env=environment).stdout.splitlines():
            assert "not found" not in line and str(options.build) not in line, line
        call("run", "configs/demo.yaml", "--set", f"run={run}", "--set", "device=cpu", "--set", "threads=1",
             "--set", "recipes=[{method: rtn, bits: 4, group_size: 128, symmetric: true}]",
             "--set", "calibration.samples=4", "--set", "calibration.sequence_length=32", "--set", "evaluate.perplexity.0.limit=2")
        # A named task, which the program has in it, and that of a file among those that are installed.
        facts, model = data / "tests/data/tiny-world/tasks/facts.jsonl", data / "tests/data/tiny-world"
        named, own = (call("evaluate", model, "--task", task, "--file", facts, "--limit", "3", "--name", "facts")
                      for task in ("choices", "configs/tasks/choices.yaml"))
        assert named == own and named.startswith("facts: acc "), (named, own)
        call("verify", run)
        assert (run / "export" / "rtn-w4g128-symmetric").is_dir(), "nothing was exported"
        assert "/build" not in (run / "config.yaml").read_text(), "the run names files of the build"
        for script in ("slurm/quantize_demo.sh", "scripts/mpirun.sh"):
            assert os.access(data / script, os.X_OK), f"{script} cannot be started"
        print(said.strip(), "runs from", program)


if __name__ == "__main__":
    sys.exit(main())
