"""The contract tests of kernels and of transfers on the device, all programs at once: most of their time is the reference in
double precision, on the CPU."""
import subprocess

import settings


TRANSFERS = "comm_device_device_transport_test"  # this process alone; NCCL where there is a GPU


def programs():
    kernels = sorted(path.name for path in settings.PROGRAMS.glob("kernels_*_test") if "emulated" not in path.name)
    return kernels + [TRANSFERS]


def arguments(name, report):
    chosen = "*" if name == TRANSFERS else f"*/{settings.DEVICE}"
    return "--gtest_brief=1", f"--gtest_filter={chosen}", f"--gtest_output=json:{report}"


def summary(report):
    cases = [case for suite in report["testsuites"] for case in suite["testsuite"]]
    return {"run": sum(case["result"] == "COMPLETED" for case in cases),
            "skipped": sum(case["result"] == "SKIPPED" for case in cases),
            "failed": [f"{case['classname']}.{case['name']}" for case in cases if case.get("failures")],
            "seconds": report["time"]}


def run_all(step):
    reports = {name: settings.WORK / f"{name}.json" for name in programs()}
    running = {name: subprocess.Popen(
        settings.command(name, *arguments(name, report)), env=settings.environment(), cwd=settings.SOURCE)
        for name, report in reports.items()}
    results = {}
    for name, process in running.items():
        code = process.wait()
        results[name] = summary(settings.read_json(reports[name])) if reports[name].exists() else {"crashed": code}
        settings.note(step, programs=results)
    whole = [result for result in results.values() if "crashed" not in result]
    ran, failed = sum(result["run"] - len(result["failed"]) for result in whole), sum((result["failed"] for result in whole), [])
    crashed = [name for name, result in results.items() if "crashed" in result]
    if crashed or failed:
        raise settings.Failed(f"{len(failed)} failed {' '.join(failed)}; crashed: {' '.join(crashed) or 'none'}; {ran} passed")
    if ran == 0:
        raise settings.Skipped(f"no device for {settings.DEVICE}: {sum(result['skipped'] for result in whole)} tests skipped")
    print(f"{ran} passed, none failed")
