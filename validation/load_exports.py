#!/usr/bin/env python3
"""Exports the bundled model by every kind of recipe in every format, and loads each with the libraries that others use.

    load_exports.py --program build/bin/roundhouse --work DIR --venvs DIR [--engine NAME]... [--kind TEXT]... [--table FILE]

See README.md. Exit code: 0 if all that loaded computes what we compute, 1 if not.
"""

import argparse
import json
import pathlib
import subprocess
import sys
import time

import engines
import kinds

HERE = pathlib.Path(__file__).resolve().parent
MODEL = HERE.parent / "tests" / "data" / "tiny-world"
SECONDS_WITHOUT_ANSWER = 600


def say(text):
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


class Environments:
    """A virtual environment for each engine, under one folder, made where they are not there yet."""

    def __init__(self, folder):
        self.folder = folder

    def python(self, name):
        packages = engines.PYTORCH if name == "torch" else engines.ENGINES[name][0]
        home = self.folder / name
        python, done = home / "bin" / "python", home / "installed"
        if done.exists() and done.read_text().split() == packages:
            return python
        say(f"installing {name}: {' '.join(packages)}")
        subprocess.run([sys.executable, "-m", "venv", "--clear", home], check=True)
        if name != "torch":
            shared = self.python("torch").parent.parent
            (site,) = shared.glob("lib/python*/site-packages")
            (mine,) = home.glob("lib/python*/site-packages")
            (mine / "torch.pth").write_text(f"{site}\n")
        pip = [python, "-m", "pip", "--quiet", "install"]
        subprocess.run([*pip, "--upgrade", "pip", "setuptools", "wheel"], check=True)
        # GPTQModel and AutoAWQ look for PyTorch while they are built.
        subprocess.run([*pip, "--no-build-isolation", *packages], check=True)
        done.write_text("\n".join(packages) + "\n")
        return python

    def versions(self, name):
        code = ("import importlib.metadata as m, json, sys\n"
                "print(json.dumps({d.metadata['Name'].lower(): d.version for d in m.distributions()}))")
        found = json.loads(subprocess.run([self.python(name), "-c", code], check=True, capture_output=True).stdout)
        return ", ".join(f"{package} {found[package]}" for package in engines.NAMED if package in found)


def export(program, work, recipes):
    """Quantizes and exports. Returns (folders by recipe and format, the program's own refusals, results)."""
    run = work / "run"
    config = work / "config.yaml"
    lines = [f"model: {MODEL}", f"run: {run}",
             f"calibration: {{text: {MODEL}/calibration.jsonl, samples: 32, sequence_length: 256, seed: 1}}",
             "recipes:", *(f"  - {kinds.yaml_of(recipe)}" for recipe in recipes),
             "evaluate:", "  original: false",
             f"  perplexity: [{{name: test, text: {MODEL}/test.txt, window: 512, limit: 4}}]", ""]
    config.write_text("\n".join(lines))
    say(f"quantizing {len(recipes)} recipes")
    with open(work / "run.log", "w") as log:
        subprocess.run([program, "run", config], check=True, stdout=log, stderr=log)
    folders, refusals = {}, {}
    for form in kinds.FORMATS:
        held = [recipe["name"] for recipe in recipes if kinds.holds(form, recipe)]
        chosen = [word for name in held for word in ("--recipe", name)]
        if held:
            subprocess.run([program, "export", run, "--format", form, *chosen], check=True, capture_output=True)
        folders.update({(name, form): run / "export" / name / form for name in held})
        for name in {recipe["name"] for recipe in recipes} - set(held):
            made = subprocess.run([program, "export", run, "--format", form, "--recipe", name],
                                  capture_output=True, text=True)
            if made.returncode != 2:
                raise SystemExit(f"{name} as {form} was to be refused")
            refusals[name, form] = made.stderr.strip().splitlines()[-1]
    results = {recipe["name"]: json.loads((run / "results" / f"{recipe['name']}.json").read_text())
               for recipe in recipes}
    return folders, refusals, results


def load(python, loader, folders, work, log):
    """Answers by folder. A library that takes its process with it has answered for one export; another process goes on."""
    answers, left = {}, list(folders)
    references = work / "references"
    references.mkdir(exist_ok=True)
    while left:
        before = len(left)
        listed = work / "left.txt"
        listed.write_text("".join(f"{folder}\n" for folder in left))
        command = [python, HERE / "load_one.py", loader, MODEL / "test.txt", references]
        with open(listed) as exports:
            process = subprocess.Popen(command, stdin=exports, stdout=subprocess.PIPE, stderr=log, text=True)
        for line in process.stdout:
            print(line, end="", file=log, flush=True)
            answer = json.loads(line)
            folder = pathlib.Path(answer.pop("export"))
            answers[folder] = answer
            left.remove(folder)
            say(f"  {loader}: {'/'.join(folder.parts[-2:])}: {answer.get('error', 'ok').splitlines()[0][:100]}")
        code = process.wait()
        if left and (code != 0 or len(left) == before):
            answers[left.pop(0)] = {"error": f"the process ended with {code}"}
    return answers


def perplexity_of(result):
    """Of the one task."""
    return result["perplexity"]["test"]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--program", type=pathlib.Path, required=True)
    parser.add_argument("--work", type=pathlib.Path, required=True, help="exports, logs and logits go here")
    parser.add_argument("--venvs", type=pathlib.Path, required=True, help="virtual environments go here")
    parser.add_argument("--engine", action="append", choices=engines.ENGINES, help="only this one; may be repeated")
    parser.add_argument("--kind", action="append", default=[], help="only recipes whose names hold this")
    parser.add_argument("--table", type=pathlib.Path, help="write the table here, besides to the terminal")
    arguments = parser.parse_args()
    work = arguments.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    recipes = [recipe for recipe in kinds.recipes()
               if not arguments.kind or any(kind in recipe["name"] for kind in arguments.kind)]
    folders, refusals, results = export(arguments.program.resolve(), work, recipes)
    environments = Environments(arguments.venvs.resolve())
    rows = [f"{form} {recipe['name']}" for form in kinds.FORMATS for recipe in recipes]
    columns, cells = [], {}
    with open(work / "engines.log", "w") as log:
        say("logits of the dense exports")
        load(environments.python(engines.REFERENCE), "reference",
             [folder for (_, form), folder in folders.items() if form == "dense"], work, log)
        for engine in arguments.engine or engines.ENGINES:
            for loader in engines.ENGINES[engine][1]:
                column = environments.versions(engine)
                column += " with dequantize=True" if loader == "transformers-dequantize" else ""
                column += " (GPTQModel itself)" if loader == "gptqmodel" else ""
                columns.append(column)
                say(f"{column}")
                answers = load(environments.python(engine), loader, folders.values(), work, log)
                for (name, form), folder in folders.items():
                    cells[f"{form} {name}", column] = kinds.verdict(answers[folder], perplexity_of(results[name]))
                for (name, form), why in refusals.items():
                    cells[f"{form} {name}", column] = ("not made", kinds.one_line(why.replace(name, "NAME")))
    text = kinds.table(columns, rows, cells)
    text += "\nNot tried: " + "; ".join(f"{engine} ({why})" for engine, why in engines.NOT_RUN.items()) + ".\n"
    if arguments.table:
        arguments.table.write_text(text)
    print(text)
    return 1 if any(word == "differs" for word, _ in cells.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
