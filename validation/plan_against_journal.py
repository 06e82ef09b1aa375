#!/usr/bin/env python3
"""Holds a plan beside the run that it was of: seconds, memory, disk and bytes sent.

    validation/plan_against_journal.py [--ranks N] [--program build/bin/roundhouse] [--rates FILE] [--synthesize SHAPE] [--recipe YAML ...]
        CONFIG [--set KEY=VALUE ...]

Measures this machine, a block by each method (roundhouse plan --measure), unless there is a file of --rates, plans the run with what it found, runs it in a new folder, and prints
a table. The machine should have nothing else to do meanwhile: seconds are those of a clock on the wall. --synthesize makes the model
first, three blocks of a published shape with random weights and the bundled model's tokenizer. Each --recipe '{method: rtn}' has a run of
its own, without the configuration's recipes, so that there is a memory of each.
"""
import argparse
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile


def bytes_below(folder):
    return sum(file.stat().st_size for file in pathlib.Path(folder).rglob("*") if file.is_file())


def output_of(*command):
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


class Comparison:
    def __init__(self, given, folder):
        self.given, self.run, self.rates = given, os.path.join(folder, "run"), os.path.join(folder, "rates.json")
        self.settings = [word for value in given.set for word in ("--set", value)] + ["--set", f"run={self.run}"]
        if given.synthesize:
            model = os.path.join(folder, "model")
            output_of(given.program, "synth", "--like", given.synthesize, "--blocks", "3",
                      "--tokenizer", "tests/data/tiny-world", model)
            self.settings += ["--set", f"model={model}"]
        if given.rates:
            self.rates = given.rates
        else:
            measured = ["--set", f"recipes=[{', '.join(given.recipe)}]"] if given.recipe else []
            output_of(given.program, "plan", given.config, *self.settings, *measured, "--measure", "--write-rates", self.rates)

    def plan(self, *more):
        return json.loads(output_of(self.given.program, "plan", self.given.config, *self.settings, *more,
                                    "--rates", self.rates, "--ranks", str(self.given.ranks), "--json"))

    def rows(self, *more):
        """(what, planned, found) of a run, which is removed."""
        ranks = self.given.ranks
        plan = self.plan(*more)
        launcher = ["mpirun", "--oversubscribe", "--bind-to", "none", "-n", str(ranks)] if ranks > 1 else []
        output_of(*launcher, self.given.program, "run", self.given.config, *self.settings, *more)
        with open(os.path.join(self.run, "journal.jsonl")) as journal:
            events = [json.loads(line) for line in journal]
        blocks = [event for event in events if event["event"] == "block"]
        rows = []
        for recipe in plan["recipes"]:
            mine = [event["seconds"] for event in blocks if event["recipe"] == recipe["name"]]
            rows.append((f"{recipe['name']}: seconds of a unit", recipe["unit_seconds"], sum(mine) / len(mine)))
            rows.append((f"{recipe['name']}: records, MB", plan["model"]["blocks"] * recipe["record_bytes"] / 1e6,
                         bytes_below(os.path.join(self.run, "recipes", recipe["name"])) / 1e6))
        names = plan["recipes"][0]["name"] if len(plan["recipes"]) == 1 else "all"
        if len(plan["recipes"]) > 1:
            rows.append((f"{names}: units together, s", sum(r["unit_seconds"] * r["units"] for r in plan["recipes"]),
                         sum(event["seconds"] for event in blocks)))
        rows.append((f"{names}: memory of a rank while blocks are made, MiB", plan["memory"]["units_host"] / 2**20,
                     max(event["peak_memory_mib"] for event in blocks)))
        done = [event for event in events if event["event"] == "done"]
        if plan["evaluation"]["seconds"] > 0:
            rows.append((f"{names}: memory of a rank, MiB", plan["memory"]["host"] / 2**20, done[-1]["peak_memory_mib"]))
        if plan["disk"]["exports"] > 0:
            rows.append((f"{names}: exports, MB", plan["disk"]["exports"] / 1e6,
                         bytes_below(os.path.join(self.run, "export")) / 1e6))
        if ranks > 1:
            rows.append((f"{names}: sent, MB", plan["wire"]["all"] / 1e6, done[-1]["sent_bytes"] / 1e6))
        shutil.rmtree(self.run)
        return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config")
    parser.add_argument("--ranks", type=int, default=1)
    parser.add_argument("--program", default="build/bin/roundhouse")
    parser.add_argument("--rates", metavar="FILE")
    parser.add_argument("--synthesize", metavar="SHAPE")
    parser.add_argument("--recipe", action="append", default=[], metavar="YAML")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    given = parser.parse_args()

    os.makedirs("runs", exist_ok=True)
    with tempfile.TemporaryDirectory(dir=os.path.abspath("runs"), prefix="plan-") as folder:
        comparison = Comparison(given, folder)
        print(f"| {given.config}, {given.ranks} rank{'s' if given.ranks > 1 else ''} | planned | found | planned / found |")
        print("|---|---|---|---|")
        for more in [["--set", f"recipes=[{recipe}]"] for recipe in given.recipe] or [[]]:
            for what, planned, found in comparison.rows(*more):
                print(f"| {what} | {planned:.3f} | {found:.3f} | {planned / found if found else 0:.2f} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
