"""A whole run of a small model in a folder of its own, so fast that a test can have hundreds."""
import hashlib
import os
import pathlib
import subprocess
import tempfile

import small_models

CONFIG = """
model: {folder}/model
run: {folder}/run
calibration: {{text: {folder}/calibration.jsonl, samples: 6, sequence_length: 32, seed: 7, shards: 3}}
recipes:
  - {{method: rtn, bits: 4, group_size: 32}}
  - {{method: gptq, bits: 3, group_size: 32}}
  - {{method: awq, bits: 4, group_size: 32}}
threads: 1
export: {{formats: [compressed-tensors, dense], shard_gib: 0.0005}}
evaluate:
  perplexity: [{{name: test, text: {folder}/test.txt, window: 32, limit: 2}}]
  kl: true
  limit: 5
  tasks: [{{name: facts, file: {folder}/facts.jsonl}}, {{name: lastword, file: {folder}/lastword.jsonl, template: greedy}}]
"""


class Failure(Exception):
    pass


def check(ok, what):
    if not ok:
        raise Failure(what)


class SmallRun:
    def __init__(self, options):
        self.program, self.mpiexec = options.program.resolve(), options.mpiexec
        self.temporary = tempfile.TemporaryDirectory(prefix="roundhouse-small-")
        self.folder = pathlib.Path(self.temporary.name)
        self.run, self.model, self.config = self.folder / "run", self.folder / "model", self.folder / "config.yaml"
        source = options.source.resolve()
        small_models.write_mistral(self.model, source)
        world = source / "tests/data/tiny-world"
        lines = (world / "calibration.jsonl").read_text().splitlines(keepends=True)
        (self.folder / "calibration.jsonl").write_text("".join(lines[:40]))
        (self.folder / "test.txt").write_text((world / "test.txt").read_text()[:2000])
        for task in ("facts", "lastword"):
            lines = (world / f"tasks/{task}.jsonl").read_text().splitlines(keepends=True)
            (self.folder / f"{task}.jsonl").write_text("".join(lines[:7]))
        self.config.write_text(CONFIG.format(folder=self.folder))
        self.environment = dict(os.environ, OMPI_MCA_btl_vader_single_copy_mechanism="none", OMPI_ALLOW_RUN_AS_ROOT="1",
                                OMPI_ALLOW_RUN_AS_ROOT_CONFIRM="1")

    def call(self, *arguments, expect=0, ranks=1, environment=None):
        """Runs the program to its end and returns what it printed."""
        launcher = [] if ranks == 1 else [self.mpiexec, "--oversubscribe", "--bind-to", "none", "-n", str(ranks)]
        done = subprocess.run([*launcher, str(self.program), *map(str, arguments)], stdout=subprocess.PIPE,
                              stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, timeout=300, cwd=self.folder,
                              env=dict(self.environment, **(environment or {})))
        text = done.stdout.decode(errors="replace")
        check(done.returncode == expect, f"{' '.join(map(str, arguments))}: exit code {done.returncode}, not {expect}:\n{text}")
        return text

    def finish(self, *arguments, **options):
        return self.call("run", self.config, *arguments, **options)

    def files(self):
        """Every file of the run but the lease, by its path in it."""
        return sorted(str(path.relative_to(self.run)) for path in self.run.rglob("*")
                      if path.is_file() and path.name not in ("lease", "journal.damaged"))

    def hashes(self):
        """Of every file that has the same bytes however the run went: all but those with times in them."""
        return {name: hashlib.sha256((self.run / name).read_bytes()).hexdigest() for name in self.files()
                if not name.startswith(("journal", "report"))}
