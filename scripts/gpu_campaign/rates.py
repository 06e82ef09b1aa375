"""The card's own rates on random data, with PyTorch in a process of its own: the ceilings of all other figures."""
import importlib.util
import subprocess
import sys

import settings


def measure(step):
    if settings.DEVICE != "cuda":
        raise settings.Skipped("a CPU's rates are not asked for")
    if importlib.util.find_spec("torch") is None:
        raise settings.Skipped(f"{sys.executable} has no PyTorch (import torch), which measures the card's rates")
    results = settings.WORK / "facts/rates.json"  # written as it goes
    sys.stdout.flush()
    if subprocess.run([sys.executable, "-B", settings.HERE / "torch_rates.py", results]).returncode != 0:
        raise settings.Failed("PyTorch could not measure all of the card's rates; the log says why")
