"""What machine this is, and whether the programs start on it."""
import os
import shutil
import subprocess

import contracts
import settings

QUERY = "name,memory.total,driver_version,compute_cap,clocks.max.sm,clocks.max.mem,pcie.link.gen.current,pcie.link.width.current,power.limit"


def output_of(*words):
    """What a program prints, "" where there is none such."""
    try:
        return subprocess.run(words, capture_output=True, text=True).stdout.strip()
    except FileNotFoundError:
        return ""


def processor():
    with open("/proc/cpuinfo") as file:
        names = [line.split(":", 1)[1].strip() for line in file if line.startswith("model name")]
    return names[0] if names else ""


def describe(step):
    card = output_of("nvidia-smi", "--query-gpu=" + QUERY, "--format=csv,noheader")
    with open("/proc/meminfo") as file:
        available = next(int(line.split()[1]) for line in file if line.startswith("MemAvailable"))
    settings.note(step, gpu=dict(zip(QUERY.split(","), map(str.strip, card.splitlines()[0].split(",")))) if card else None,
                  processor=processor(), processors=len(os.sched_getaffinity(0)),
                  host_memory_available_gib=available >> 20, locked_memory_kib=output_of("sh", "-c", "ulimit -l"),
                  scratch_free_gib=shutil.disk_usage(settings.WORK).free >> 30,
                  libraries=os.environ.get("BUNDLE_LIBRARIES", "").split(":"))
    for words in (["nvidia-smi"], ["nvcc", "--version"], ["compute-sanitizer", "--version"], ["free", "-g"], ["df", "-h"]):
        print(f"$ {' '.join(words)}\n{output_of(*words) or 'not there'}\n")
    if not card and settings.DEVICE == "cuda":
        raise settings.Failed("nvidia-smi names no GPU")
    print(card.splitlines()[0] if card else processor())


def start(step):
    """Every library is found, and the device multiplies right."""
    missing = set()
    for program in ["roundhouse", "kernels_bench", "block_bench", *contracts.programs()]:
        found = subprocess.run(["ldd", settings.PROGRAMS / program], capture_output=True, text=True, env=settings.environment()).stdout
        missing |= {line.split()[0] for line in found.splitlines() if "not found" in line}
    settings.note(step, missing_libraries=sorted(missing))
    if missing:
        print("missing libraries:", *sorted(missing))
    settings.check("roundhouse", "--version")
    settings.check("kernels_bench", settings.DEVICE, "--small")
