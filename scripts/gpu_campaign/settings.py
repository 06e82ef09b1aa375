"""What gpu_campaign.sh settled, and what a step has to work with. The same in the process of every step."""
import json
import os
import pathlib
import subprocess
import sys
import time

HERE = pathlib.Path(__file__).resolve().parent
SOURCE = HERE.parent.parent
BUNDLED_MODEL = SOURCE / "tests/data/tiny-world"
PROGRAMS = pathlib.Path(os.environ["PROGRAMS"])
WORK = pathlib.Path(os.environ["CAMPAIGN_WORK"])
OUT = pathlib.Path(os.environ["OUT"])
DEVICE = os.environ["CAMPAIGN_DEVICE"]
SIZE = os.environ["CAMPAIGN_SIZE"]
FACTS, LOGS, RUNS, MODEL = WORK / "facts", WORK / "logs", WORK / "runs", WORK / "model"

SKIPPED = 77  # exit code of a step that has nothing to say here


class Failed(Exception):
    """The step found something wrong. One line."""


class Skipped(Exception):
    """The step cannot run here, or has nothing to run. One line that says why."""


def environment():
    """For our programs alone: what they load may be too old or too new for others."""
    libraries = [os.environ.get("BUNDLE_LIBRARIES"), os.environ.get("LD_LIBRARY_PATH")]
    path = ":".join(folder for folder in libraries if folder)
    return dict(os.environ, **({"LD_LIBRARY_PATH": path} if path else {}))


def seconds_left():
    """Of the whole campaign."""
    return float(os.environ["CAMPAIGN_STARTED"]) + float(os.environ["CAMPAIGN_SECONDS"]) - time.time()


def command(program, *arguments):
    return [str(PROGRAMS / program), *map(str, arguments)]


def run(program, *arguments):
    """One of our programs, its output in the step's log; returns its exit code."""
    sys.stdout.flush()
    return subprocess.run(command(program, *arguments), env=environment(), cwd=SOURCE).returncode


def check(program, *arguments):
    status = run(program, *arguments)
    if status != 0:
        raise Failed(f"{program} {' '.join(map(str, arguments))}: exit code {status}")


def write_atomically(path, text):
    part = path.with_name(path.name + ".part")
    part.write_text(text)
    os.replace(part, path)


def read_json(path):
    return json.loads(path.read_text())


def note(step, **facts):
    """Adds facts to what is known of a step, on disk at once: it may be killed a moment later."""
    path = FACTS / f"{step}.json"
    known = read_json(path) if path.exists() else {}
    write_atomically(path, json.dumps({**known, **facts}, indent=1))
