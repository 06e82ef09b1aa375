"""The steps in order, each in a process group of its own and with a limit of its own; results after each.

campaign.py                 all of them (gpu_campaign.sh sets the environment)
campaign.py --step NAME     one of them, in this process
campaign.py --baseline      the bundled model on this CPU, kept beside this file
"""
import os
import signal
import subprocess
import sys
import time

import baseline
import blocks
import bundled
import card
import contracts
import kernels
import publish
import rates
import sanitizer
import settings
import table
from settings import LOGS

# Name, what it does, its limit in seconds, and how many must be left for it to be worth starting. Most valuable first.
STEPS = [
    ("card", card.describe, 20, 1),
    ("start", card.start, 40, 5),
    ("contracts", contracts.run_all, 120, 20),
    ("bundled", bundled.compare, 100 if settings.DEVICE == "cuda" else 300, 20),
    ("gptq", blocks.gptq, 100, 30),
    ("signround", blocks.signround, 100, 30),
    ("awq", blocks.awq, 90, 30),
    ("squeezellm", blocks.squeezellm, 60, 15),
    ("again", bundled.again, 60, 15),
    ("rates", rates.measure, 60, 25),
    ("kernels", kernels.measure, 50, 20),
    ("sanitizer", sanitizer.run_all, 120, 40),
]
RESERVE = 10  # seconds to kill what hangs and to write the last results


def run_step(name):
    work = {step: function for step, function, _, _ in STEPS} | {"model": blocks.synthesize}
    try:
        work[name](name)
    except settings.Skipped as why:
        settings.note(name, why=str(why))
        print(f"skipped: {why}")
        return settings.SKIPPED
    except settings.Failed as why:
        settings.note(name, why=str(why))
        print(f"FAILED: {why}")
        return 1
    return 0


def start_step(name):
    with open(LOGS / f"{name}.log", "wb") as log:
        return subprocess.Popen([sys.executable, "-B", __file__, "--step", name], stdin=subprocess.DEVNULL,
                                stdout=log, stderr=subprocess.STDOUT, start_new_session=True)


def kill_group(process):
    """All that a step started. What does not even die of SIGKILL (a driver that hangs) is left behind."""
    for number, patience in ((signal.SIGTERM, 2), (signal.SIGKILL, 3)):
        try:
            os.killpg(process.pid, number)
            process.wait(patience)
        except (ProcessLookupError, subprocess.TimeoutExpired):
            pass


class Campaign:
    def __init__(self):
        self.started = float(os.environ["CAMPAIGN_STARTED"])
        self.seconds = float(os.environ["CAMPAIGN_SECONDS"])
        self.running = []
        self.statuses = {}

    def elapsed(self):
        return time.time() - self.started

    def left(self):
        return self.seconds - self.elapsed() - RESERVE

    def start(self, name):
        process = start_step(name)
        self.running.append(process)
        return process

    def finish(self, name, process, limit, begin):
        """Waits, kills what is left at the limit, publishes."""
        try:
            code = process.wait(max(0.0, begin + limit - time.time()))
            status = {0: "ok", settings.SKIPPED: "skipped"}.get(code, f"failed (exit code {code})")
        except subprocess.TimeoutExpired:
            status = "out of time"
        kill_group(process)
        self.running.remove(process)
        self.record(name, status, time.time() - begin)

    def record(self, name, status, seconds):
        self.statuses[name] = {"status": status, "seconds": round(seconds, 1)}
        log = LOGS / f"{name}.log"
        lines = log.read_text(errors="replace").splitlines() if log.exists() else []
        print(f"{self.elapsed():4.0f} s  {name:11} {status:22} {seconds:6.1f} s  {lines[-1][:110] if lines else ''}", flush=True)
        publish.publish(self.statuses)

    def run(self, wanted):
        steps = [step for step in STEPS if not wanted or step[0] in wanted]
        model, model_begin = None, time.time()  # beside the first steps, on one processor
        if any(name in blocks.METHODS for name, _, _, _ in steps):
            model = self.start("model")
        for name, _, limit, least in steps:
            if self.left() < least:
                self.record(name, "no time left", 0)
                continue
            begin = time.time()
            self.finish(name, self.start(name), min(limit, self.left()), begin)
            if model and model.poll() is not None:
                blocks.MODEL_OVER.touch()  # also where it was killed
                self.finish("model", model, 0, model_begin)
                model = None
        if model:
            self.finish("model", model, 0, model_begin)

    def stop(self, *_):
        for process in self.running:
            kill_group(process)
        publish.publish(self.statuses)
        sys.exit(143)


def main():
    for folder in (settings.FACTS, LOGS, settings.RUNS):
        folder.mkdir(exist_ok=True)
    if sys.argv[1:2] == ["--step"]:
        sys.exit(run_step(sys.argv[2]))
    if sys.argv[1:2] == ["--baseline"]:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # an exception, which ends the program that is waited for
        sys.exit(baseline.make())
    wanted = os.environ["CAMPAIGN_STEPS"].split()
    unknown = set(wanted) - {name for name, _, _, _ in STEPS}
    if unknown:
        sys.exit(f"CAMPAIGN_STEPS: {', '.join(sorted(unknown))}: not one of {', '.join(name for name, _, _, _ in STEPS)}")
    campaign = Campaign()
    signal.signal(signal.SIGTERM, campaign.stop)
    signal.signal(signal.SIGINT, campaign.stop)
    campaign.run(wanted)
    print("\n" + table.lines(), flush=True)
    bad = [name for name, facts in campaign.statuses.items() if facts["status"] not in ("ok", "skipped")]
    print(f"{campaign.elapsed():.0f} s of {campaign.seconds:.0f}; {len(list(settings.OUT.iterdir()))} files in {settings.OUT}"
          + (f"; NOT ok: {', '.join(bad)}" if bad else ""))
    sys.exit(1 if bad else 0)


if __name__ == "__main__":
    main()
