"""compute-sanitizer over the contract tests on the device; its reports go to sanitizer.txt."""
import os
import pathlib
import re
import shutil
import subprocess

import settings

EVERYTHING = "*/cuda"
# Of linear algebra only the kernels that are ours: cuBLAS and cuSOLVER run under it too, slowly.
OURS = {"linear_algebra": ":".join(f"*{name}*/cuda" for name in
                                   ("GathersRows", "SymmetrizeReverse", "ScalesEach", "Gram", "TriangularInverse"))}
CHECKS = {"memcheck": ("memory", "quantization", "learned_rounding", "activation_aware", "transformer", "gradients", "linear_algebra"),
          "racecheck": ("quantization", "learned_rounding", "activation_aware", "transformer", "gradients")}
LIMIT = 100  # seconds of each, all at once


def find_sanitizer():
    here = shutil.which("compute-sanitizer")
    toolkit = pathlib.Path(os.environ.get("CUDA_HOME", "/usr/local/cuda")) / "bin/compute-sanitizer"
    return here or (str(toolkit) if toolkit.exists() else None)


# Tests make calls fail on purpose, and look at what every call returns.
OPTIONS = {"memcheck": ["--report-api-errors", "no"], "racecheck": []}


def start(sanitizer, tool, name, limit):
    words = [sanitizer, "--tool", tool, *OPTIONS[tool], "--print-limit", "20", "--error-exitcode", "9",
             *settings.command(f"kernels_{name}_test", "--gtest_brief=1", f"--gtest_filter={OURS.get(name, EVERYTHING)}")]
    with open(settings.WORK / f"sanitizer-{tool}-{name}.txt", "wb") as report:
        # In the foreground: in the step's own process group, which ends with the step.
        return subprocess.Popen(["timeout", "--foreground", "--kill-after=2", str(limit), *words], stdout=report, stderr=subprocess.STDOUT,
                                env=settings.environment(), cwd=settings.SOURCE)


def verdict(code, report):
    """Whether it is clean, and a line about it. A filter that chooses no test would be clean, too."""
    if code == 124 or code == 137:
        return False, "not finished in time"
    text = report.read_text(errors="replace")
    passed = sum(map(int, re.findall(r"PASSED *\] (\d+) test", text)))
    found = re.findall(r"(?:ERROR|RACECHECK) SUMMARY: (.*)", text)
    return code == 0 and passed > 0, f"exit code {code}, {passed} tests passed: {found[-1] if found else 'no summary'}"


def run_all(step):
    if settings.DEVICE != "cuda":
        raise settings.Skipped("for a GPU")
    sanitizer = find_sanitizer()
    if not sanitizer:
        raise settings.Skipped("no compute-sanitizer on the path or in the toolkit")
    limit = max(1, min(LIMIT, settings.seconds_left() - 5))
    running = {f"{tool}-{name}": start(sanitizer, tool, name, limit) for tool, names in CHECKS.items() for name in names}
    verdicts, bad = {}, []
    for check, process in running.items():
        report = settings.WORK / f"sanitizer-{check}.txt"
        clean, verdicts[check] = verdict(process.wait(), report)
        print(f"{check}: {verdicts[check]}", flush=True)
        settings.note(step, verdicts=verdicts)
        if not clean:
            bad.append(check)
    if bad:
        raise settings.Failed(f"{len(bad)} of {len(running)} are not clean: {' '.join(bad)}")
    print(f"{len(running)} clean")
