#!/usr/bin/env python3
"""Holds a plan beside the run that it was of: seconds, memory, disk and bytes sent.

    validation/plan_against_journal.py [--ranks N] [--program build/bin/roundhouse] CONFIG [--set KEY=VALUE ...]

Measures this machine for some seconds (roundhouse plan --measure), plans the run with what it found, runs it in a new folder, and prints
a table. The machine should have nothing else to do meanwhile: seconds are those of a clock on the wall.
"""
import argparse
import json
import os
import pathlib
import subprocess
import sys
import tempfile


def bytes_below(folder):
    return sum(file.stat().st_size for file in pathlib.Path(folder).rglob("*") if file.is_file())


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config")
    parser.add_argument("--ranks", type=int, default=1)
    parser.add_argument("--program", default="build/bin/roundhouse")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    given = parser.parse_args()
    settings = [word for value in given.set for word in ("--set", value)]

    with tempfile.TemporaryDirectory(dir=os.getcwd(), prefix="plan-") as folder:
        run, rates = os.path.join(folder, "run"), os.path.join(folder, "rates.json")
        settings += ["--set", f"run={run}"]
        subprocess.run([given.program, "plan", given.config, *settings, "--measure", "--write-rates", rates],
                       check=True, stdout=subprocess.DEVNULL)
        plan = json.loads(subprocess.run(
            [given.program, "plan", given.config, *settings, "--rates", rates, "--ranks", str(given.ranks), "--json"],
            check=True, capture_output=True, text=True).stdout)
        launcher = ["mpirun", "--oversubscribe", "--bind-to", "none", "-n", str(given.ranks)] if given.ranks > 1 else []
        subprocess.run([*launcher, given.program, "run", given.config, *settings], check=True, stdout=subprocess.DEVNULL)

        with open(os.path.join(run, "journal.jsonl")) as journal:
            events = [json.loads(line) for line in journal]
        blocks = [event for event in events if event["event"] == "block"]
        rows = []
        for recipe in plan["recipes"]:
            mine = [event["seconds"] for event in blocks if event["recipe"] == recipe["name"]]
            rows.append((f"{recipe['name']}: seconds of a unit", recipe["unit_seconds"], sum(mine) / len(mine)))
            rows.append((f"{recipe['name']}: records, MB", plan["model"]["blocks"] * recipe["record_bytes"] / 1e6,
                         bytes_below(os.path.join(run, "recipes", recipe["name"])) / 1e6))
        rows.append(("units together, s", sum(r["unit_seconds"] * r["units"] for r in plan["recipes"]),
                     sum(event["seconds"] for event in blocks)))
        rows.append(("memory of a rank, MiB", plan["memory"]["host"] / 2**20,
                     max(event["peak_memory_mib"] for event in blocks)))
        if plan["disk"]["exports"] > 0:
            rows.append(("exports, MB", plan["disk"]["exports"] / 1e6, bytes_below(os.path.join(run, "export")) / 1e6))
        sent = next((event["sent_bytes"] for event in events if event["event"] == "done"), 0)
        if given.ranks > 1:
            rows.append(("sent, MB", plan["wire"]["all"] / 1e6, sent / 1e6))

    print(f"| {given.config}, {given.ranks} rank{'s' if given.ranks > 1 else ''} | planned | found | planned / found |")
    print("|---|---|---|---|")
    for what, planned, found in rows:
        print(f"| {what} | {planned:.3f} | {found:.3f} | {planned / found if found else 0:.2f} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
