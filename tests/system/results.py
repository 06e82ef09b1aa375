"""Results exist as soon as their recipe is finished: exports, figures and the report, in the run and by an `export` beside it.

results.py --program FILE --source FOLDER --mpiexec FILE
"""
import argparse
import json
import pathlib
import shutil
import signal
import subprocess
import sys
import time

from small_run import Failure, SmallRun, check


class Results:
    def __init__(self, options):
        self.small = SmallRun(options)

    def journal(self):
        return [json.loads(line) for line in (self.small.run / "journal.jsonl").read_text().splitlines()]

    def products(self):
        return {name: sha for name, sha in self.small.hashes().items() if name.startswith(("export/", "recipes/", "results/"))}

    def place(self, **wanted):
        """Of the first event with these values in the journal."""
        for place, event in enumerate(self.journal()):
            if all(event.get(key) == value for key, value in wanted.items()):
                return place
        raise Failure(f"no event {wanted} in the journal")

    def one_after_the_other(self, ranks, *mesh):
        shutil.rmtree(self.small.run, ignore_errors=True)
        self.small.finish(*mesh, ranks=ranks)
        for before, after in (("rtn-w4g32", "gptq-w3g32"), ("gptq-w3g32", "awq-w4g32")):
            begins = self.place(event="block", recipe=after)
            for event in ({"event": "export", "format": "compressed-tensors"}, {"event": "export", "format": "dense"},
                          {"event": "perplexity"}):
                check(self.place(recipe=before, **event) < begins, f"{event} of {before} comes after the first block of {after}")
        self.one_walk_a_model()
        print(f"{ranks} rank(s): each recipe's results before the next recipe's first block", flush=True)

    def one_walk_a_model(self):
        """All that is measured of a recipe takes one walk, in which each ring of ranks loads each block once; with the original's, if it is compared."""
        walks = [event for event in self.journal() if event["event"] == "walk"]
        check(sorted(walk["recipe"] for walk in walks) == ["awq-w4g32", "gptq-w3g32", "original", "rtn-w4g32"], f"walks: {walks}")
        blocks = json.loads((self.small.folder / "model" / "config.json").read_text())["num_hidden_layers"]
        for walk in walks:
            models = 1 if walk["recipe"] == "original" else 2
            least = blocks * (walk["rings"] + models - 1)  # not every ring has batches that are compared
            check(least <= walk["blocks_loaded"] <= blocks * models * walk["rings"], f"{blocks} blocks, {walk}")
            check((walk["transfers"] == []) == (walk["rings"] == walk["ranks"]), f"{walk}")
            shares = [event for event in self.journal() if event["event"] in ("task", "perplexity") and event["recipe"] == walk["recipe"]]
            check(len(shares) == 3 and sum(event["seconds"] for event in shares) <= walk["seconds"], f"{walk}, {shares}")

    def same_bits(self, expected, ranks, *mesh):
        shutil.rmtree(self.small.run, ignore_errors=True)
        self.small.finish(*mesh, ranks=ranks)
        check(self.products() == expected, f"other bits on {ranks} ranks with {mesh}")
        print(f"{ranks} ranks, {mesh}: same bits", flush=True)

    def tasks(self):
        """Answers lie beside the figures; those that are lost or changed are measured again, and nothing else is."""
        results = self.small.run / "results"
        for recipe in ("original", "rtn-w4g32", "gptq-w3g32", "awq-w4g32"):
            figures = json.loads((results / f"{recipe}.json").read_text())
            for task, keys in (("facts", {"acc", "acc_stderr", "acc_norm", "acc_norm_stderr"}), ("lastword", {"acc", "acc_stderr", "perplexity"})):
                check(set(figures["tasks"][task]) == keys | {"documents"}, f"{recipe} on {task}: {figures['tasks'][task]}")
                answers = [json.loads(line) for line in (results / recipe / f"{task}.jsonl").read_text().splitlines()]
                check([answer["document"] for answer in answers] == list(range(5)), f"{recipe} on {task}: {answers}")
                right = [answer["greedy"] if task == "lastword" else answer["choice"] == answer["gold"] for answer in answers]
                check(sum(right) / 5 == figures["tasks"][task]["acc"], f"{recipe} on {task}: {right}")
            check(("kl" in figures) == (recipe != "original"), f"{recipe}: {figures}")
        for recipe, task, content in (("rtn-w4g32", "facts", None), ("original", "lastword", "{}\n")):
            expected = self.products()
            file = results / recipe / f"{task}.jsonl"
            file.unlink() if content is None else file.write_text(content)
            check(f"results/{recipe}/{task}.jsonl: " in self.small.call("verify", self.small.run, expect=1), "verify finds nothing wrong")
            before = len(self.journal())
            self.small.finish()
            measured = [(event["recipe"], event["name"]) for event in self.journal()[before:] if event["event"] in ("task", "perplexity")]
            check(measured == [(recipe, task)], f"measured again: {measured}")
            check(self.products() == expected, "other bits after a measurement that was made again")
        self.small.call("verify", self.small.run)
        print("answers of tasks, document by document, made again where they are lost", flush=True)

    def own_template(self):
        """What was measured stays while its template says the same, and is measured again when it says something else."""
        mine, facts = self.small.folder / "mine.yaml", self.small.folder / "facts.jsonl"
        tasks = f"evaluate.tasks=[{{name: facts, file: {facts}, template: {mine}}}]"
        recipes = ("original", "rtn-w4g32", "gptq-w3g32", "awq-w4g32")

        def figures():
            return [json.loads((self.small.run / f"results/{recipe}.json").read_text())["tasks"]["facts"] for recipe in recipes]

        expected = figures()
        for yaml, measures in (("include: choices\n", True), ("# a remark\ninclude: choices\nfiles: [elsewhere.jsonl]\n", False),
                               ("include: choices\ngold: '0'\n", True)):
            mine.write_text(yaml)
            before = len(self.journal())
            self.small.finish("--set", tasks)
            measured = [(event["recipe"], event["name"]) for event in self.journal()[before:] if event["event"] == "task"]
            check(sorted(measured) == sorted((recipe, "facts") for recipe in recipes if measures), f"measured with {yaml}: {measured}")
            check(("gold" in yaml) == (figures() != expected), f"figures of {yaml}: {figures()}")
            self.small.call("verify", self.small.run)
        mine.write_text("include: choices\n")
        check("other settings" in self.small.call("verify", self.small.run, expect=1), "verify does not miss the template")
        mine.unlink()
        self.small.call("verify", self.small.run)
        self.small.call("report", self.small.run)
        print("a template of one's own: what it measured stays while it says the same", flush=True)

    def export_beside(self, expected):
        """A finished recipe is exported while the job is stopped in the middle of another, holding its run."""
        shutil.rmtree(self.small.run, ignore_errors=True)
        job = subprocess.Popen([str(self.small.program), "run", str(self.small.config), "--set", "mesh.wave=1"], stdout=subprocess.DEVNULL,
                               stderr=subprocess.DEVNULL, cwd=self.small.folder, env=self.small.environment)
        try:
            deadline = time.monotonic() + 120
            while not list(self.small.run.glob("recipes/gptq-w3g32/block-*.h5")):
                check(job.poll() is None, "the run ended before its second recipe began")
                check(time.monotonic() < deadline, "no second recipe within two minutes")
                time.sleep(0.001)
            job.send_signal(signal.SIGSTOP)
            check(not list(self.small.run.glob("results/awq*")), "the run was too fast for this test")
            before = {name: (self.small.run / name).read_bytes() for name in ("config.yaml", "identity.json", "model.json")}
            page = (self.small.run / "report" / "results.csv").read_text()
            check("rtn-w4g32" in page, f"the report does not know the first recipe:\n{page}")
            out = self.small.folder / "beside"
            self.small.call("export", self.small.run, "--recipe", "rtn-w4g32", "--format", "dense", "--output", out)
            said = self.small.call("export", self.small.run, "--recipe", "awq-w4g32", expect=2)
            check("not complete" in said, said)
            for name, content in before.items():
                check((self.small.run / name).read_bytes() == content, f"`export` changed {name} of a run that another job holds")
            ours = self.small.run / "export" / "rtn-w4g32" / "dense"
            for file in ours.iterdir():
                check(file.read_bytes() == (out / "rtn-w4g32" / "dense" / file.name).read_bytes(), f"{file.name} has other bits")
        finally:
            job.send_signal(signal.SIGCONT)
        check(job.wait(300) == 0, "the job was disturbed")
        check(self.products() == expected, "the job's results are others")
        print("an export of a finished recipe beside a job that holds the run", flush=True)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--program", type=pathlib.Path, required=True)
    parser.add_argument("--source", type=pathlib.Path, required=True)
    parser.add_argument("--mpiexec", required=True)
    results = Results(parser.parse_args())
    try:
        results.one_after_the_other(1, "--set", "mesh.wave=1")
        expected = results.products()
        results.tasks()
        results.own_template()
        results.one_after_the_other(2, "--set", "mesh.pipeline=1", "--set", "mesh.wave=1")
        results.same_bits(expected, 2, "--set", "mesh.pipeline=2")
        results.same_bits(expected, 2, "--set", "mesh.data=2", "--set", "mesh.wave=3")
        results.export_beside(expected)
        return 0
    except Failure as failure:
        print(f"FAILED: {failure}", flush=True)
        return 1


if __name__ == "__main__":
    sys.exit(main())
