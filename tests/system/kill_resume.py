"""Whole runs of the bundled model. However a run went - on any number of ranks, killed, stopped, damaged, out of disk - its
exported files and its results must have the bits of the undisturbed run on one rank.

kill_resume.py --program FILE --source FOLDER --mpiexec FILE --reference FILE CASE [--seed N] [--kills N]

The case `reference` makes the reference; the others read it. `gradients-reference`, `-meshes` and `-kills` are the same of the methods that
start from the model's gradients. `stages`, which is no test, measures what each pipeline stage loses by a kill.
"""
import argparse
import collections
import ctypes
import datetime
import hashlib
import json
import os
import pathlib
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time

import small_models

SKIPPED = 77
STOPPED = 75  # the program's exit code for "stopped cleanly with work left"
IN_USE = 73  # .. and for "another job has the run"

CONFIG = """
model: {source}/tests/data/tiny-world
run: {run}
calibration: {{text: {source}/tests/data/tiny-world/calibration.jsonl, samples: 16, sequence_length: 128, seed: 7}}
recipes:
  - {{method: rtn, bits: 4, group_size: 128}}
  - {{method: gptq, bits: 4, group_size: 128}}
  - {{method: awq, bits: 4, group_size: -1, grid_points: 4}}
  - {{method: signround, bits: 3, group_size: 128, iterations: 4}}
checkpoint: {{interruption_hours: 1.0e-9}}
threads: 1
export: {{formats: [compressed-tensors, dense], shard_gib: 0.004}}
evaluate: {{perplexity: [{{name: test, text: {source}/tests/data/tiny-world/test.txt, window: 256, limit: 3}}],
  kl: true, tasks: [{{name: facts, file: {source}/tests/data/tiny-world/tasks/facts.jsonl, limit: 4}}]}}
"""
UNITS = 24  # 6 blocks x 4 recipes

# SqueezeLLM and LLM-MQ: a walk for three recipes, another one for the fourth, and decisions for the whole model.
GRADIENTS_CONFIG = """
model: {source}/tests/data/tiny-world
run: {run}
calibration: {{text: {source}/tests/data/tiny-world/calibration.jsonl, samples: 8, sequence_length: 128, seed: 7, shards: 4}}
recipes:
  - {{method: squeezellm, bits: 3, gradients: {{samples: 10, sequence_length: 128}}}}
  - {{method: squeezellm, bits: 4, sparse: true, gradients: {{samples: 10, sequence_length: 128}}}}
  - {{method: llm-mq, bits: 2.6, group_size: 64, grid_points: 3, gradients: {{samples: 10, sequence_length: 128}}}}
  - {{name: fisher-w3.2, method: llm-mq, bits: 3.2, score: fisher, tie: none, outliers: 0, grid_points: 3, gradients: {{samples: 6, sequence_length: 64}}}}
checkpoint: {{interruption_hours: 1.0e-9}}
threads: 1
export: {{formats: [dense], shard_gib: 0.004}}
evaluate: {{perplexity: [{{name: test, text: {source}/tests/data/tiny-world/test.txt, window: 256, limit: 4}}]}}
"""


class Failure(Exception):
    pass


def check(ok, what):
    if not ok:
        raise Failure(what)


class Started:
    """A run in the background."""

    def __init__(self, process, log):
        self.process, self.log = process, log

    def ranks(self):
        """Process ids of the program, in the order they were started."""
        found = []
        for pid in descendants(self.process.pid):
            try:
                name = pathlib.Path(f"/proc/{pid}/comm").read_text().strip()
            except OSError:
                continue
            if name == "roundhouse":
                found.append(pid)
        return found

    def wait(self, seconds=240):
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            kill(descendants(self.process.pid))
            self.process.wait()
            raise Failure(f"still running after {seconds} s:\n{self.output()}") from None

    def output(self):
        return self.log.read_text(errors="replace")


class World:
    def __init__(self, options):
        self.program, self.mpiexec = options.program.resolve(), options.mpiexec
        self.source, self.reference_file = options.source.resolve(), options.reference
        self.random = random.Random(options.seed)
        self.kills, self.seed = options.kills, options.seed
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="roundhouse-system-"))
        self.run = self.folder / "run"
        self.config = self.folder / "config.yaml"
        gradients = options.case.startswith("gradients")
        self.exports, self.results = (4, 5) if gradients else (8, 10)
        config = GRADIENTS_CONFIG if gradients else CONFIG
        self.config.write_text(config.format(source=self.source, run=self.run))
        self.starts = 0
        self.environment = dict(os.environ, OMPI_MCA_btl_vader_single_copy_mechanism="none")
        if os.geteuid() == 0:
            self.environment.update(OMPI_ALLOW_RUN_AS_ROOT="1", OMPI_ALLOW_RUN_AS_ROOT_CONFIRM="1")

    def command(self, ranks, *arguments):
        launcher = [] if ranks == 1 else [self.mpiexec, "--oversubscribe", "--bind-to", "none", "-n", str(ranks)]
        return [*launcher, str(self.program), *arguments]

    def start(self, ranks=1, **settings):
        """`settings` by key, with __ for the dot: mesh__data=2."""
        self.starts += 1
        log = self.folder / f"start-{self.starts}.log"
        overrides = [word for key, value in settings.items() for word in ("--set", f"{key.replace('__', '.')}={value}")]
        with open(log, "wb") as out:
            process = subprocess.Popen(self.command(ranks, "run", str(self.config), *overrides), stdout=out,
                                       stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, env=self.environment,
                                       cwd=self.folder)
        return Started(process, log)

    def finish(self, ranks=1, expect=0, **settings):
        """Runs to the end and returns what was printed."""
        job = self.start(ranks, **settings)
        code = job.wait()
        check(code == expect, f"exit code {code}, not {expect}, on {ranks} rank(s) with {settings}:\n{job.output()}")
        return job.output()

    def blocks(self):
        return sorted(self.run.glob("recipes/*/block-*.h5"))

    def wait_for_blocks(self, job, count):
        deadline = time.monotonic() + 240
        while len(self.blocks()) < count:
            check(job.process.poll() is None, f"ended before {count} blocks were done:\n{job.output()}")
            check(time.monotonic() < deadline, f"no {count} blocks within four minutes:\n{job.output()}")
            time.sleep(0.01)

    def clear(self):
        shutil.rmtree(self.run, ignore_errors=True)

    def products(self):
        """SHA-256 by path of everything that a user takes from a run."""
        hashes = {}
        for part in ("export", "results"):
            for path in sorted((self.run / part).rglob("*")):
                if path.is_file():
                    hashes[str(path.relative_to(self.run))] = hashlib.sha256(path.read_bytes()).hexdigest()
        return hashes

    def check_products(self, what):
        expected = json.loads(self.reference_file.read_text())["products"]
        actual = self.products()
        differing = sorted(path for path in expected.keys() | actual.keys() if expected.get(path) != actual.get(path))
        check(not differing, f"{what}: {len(differing)} of {len(expected)} files differ: {' '.join(differing[:6])}")

    def reference_seconds(self):
        return json.loads(self.reference_file.read_text())["seconds"]

    def verify(self, expect=0):
        done = subprocess.run(self.command(1, "verify", str(self.run)), capture_output=True, text=True, timeout=60)
        check(done.returncode == expect, f"verify: exit code {done.returncode}, not {expect}:\n{done.stdout}{done.stderr}")
        return done.stdout


def descendants(pid):
    """`pid` and every process below it."""
    children = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                # The name in parentheses may hold spaces; the parent is the second field after it.
                parent = int(pathlib.Path("/proc", entry, "stat").read_text().rpartition(")")[2].split()[1])
            except (OSError, ValueError, IndexError):
                continue
            children.setdefault(parent, []).append(int(entry))
    found = [pid]
    for parent in found:
        found.extend(sorted(children.get(parent, [])))
    return found


def kill(pids, number=signal.SIGKILL):
    for pid in pids:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            pass


def reference(world):
    began = time.monotonic()
    world.finish(1, mesh__wave=1)
    seconds = time.monotonic() - began
    products = world.products()
    exports = [path for path in products if path.endswith("SHA256SUMS")]
    results = [path for path in products if path.startswith("results/")]
    check(len(exports) == world.exports, f"{world.exports} exports expected, not {exports}")
    check(len(results) == world.results, f"{world.results} results and answers expected, not {results}")
    world.verify()
    size = sum(path.stat().st_size for path in world.run.rglob("*") if path.is_file())
    world.reference_file.write_text(json.dumps({"products": products, "seconds": seconds, "bytes": size}))
    print(f"one rank: {seconds:.1f} s, {len(products)} files of exports and results, {size / 2**20:.1f} MiB in the run")
    print(world.finish(1).strip().splitlines()[-1], "(again: nothing left to do)")
    world.check_products("started again when all was done")


def meshes(world):
    """(ranks, lanes, pipeline, data, threads, recipes of a wave); 0: the planner's choice. The reference was made recipe by recipe."""
    for ranks, lanes, pipeline, data, threads, wave in ((1, 1, 1, 1, 2, 8), (2, 1, 1, 2, 1, 8), (2, 1, 2, 1, 2, 8), (3, 1, 1, 3, 2, 1), (3, 3, 1, 1, 1, 8),
                                                        (4, 1, 2, 2, 1, 2), (4, 2, 2, 1, 2, 1), (3, 0, 0, 0, 1, 0), (2, 2, 1, 1, 2, 8)):
        world.clear()
        began = time.monotonic()
        world.finish(ranks, mesh__lanes=lanes, mesh__pipeline=pipeline, mesh__data=data, mesh__wave=wave, threads=threads)
        what = f"{ranks} rank(s), mesh {f'{lanes} x {pipeline} x {data}' if lanes else 'chosen'}, waves of {wave}, {threads} thread(s) each"
        world.check_products(what)
        print(f"{what}: same bits, {time.monotonic() - began:.1f} s", flush=True)


def durable(world):
    """When each file that a resume keeps was finished: blocks, exports and results, and what methods make of gradients."""
    times = {}
    for pattern in ("recipes/*/block-*.h5", "recipes/*/decision.h5", "recipes/*/statistics/block-*.h5", "export/*/*/SHA256SUMS", "results/*.json"):
        for path in world.run.glob(pattern):
            times[path] = path.stat().st_mtime
    return times


class LostTime:
    """What kills cost: seconds since the last file that is kept, and from the next start to the first new one."""

    def __init__(self):
        self.lost, self.restart, self.places = [], [], collections.Counter()

    def killed(self, world, began):
        kept = [time for time in durable(world).values() if time > began]
        self.lost.append(time.time() - max(kept, default=began))
        lines = world.run / "journal.jsonl"
        events = []
        for line in lines.read_text(errors="replace").splitlines() if lines.exists() else []:
            try:
                events.append(json.loads(line))
            except ValueError:
                pass  # the line that the kill tore
        last = next((event["event"] for event in reversed(events) if event["event"] != "phase"), "nothing")
        self.places[last] += 1

    def ended(self, world, before, began):
        new = [time for path, time in durable(world).items() if before.get(path) != time]
        if new:
            self.restart.append(min(new) - began)

    def __str__(self):
        def figures(values):
            return f"median {statistics.median(values):.1f} s, at most {max(values):.1f} s" if values else "none"
        places = ", ".join(f"{count} after {place!r}" for place, count in self.places.most_common())
        return (f"lost by a kill: {figures(self.lost)}; from a start to its first new file: {figures(self.restart)}\n"
                f"last event of the journal before the kill: {places}")


def kills(world):
    print(f"seed {world.seed}")
    longest = max(1.0, 0.6 * world.reference_seconds())
    killed = finished = 0
    times = LostTime()
    while killed < world.kills:
        before = durable(world)
        ranks = world.random.choice((1, 2, 3, 4))
        data = world.random.choice([d for d in (0, 1, 2, 3, 4) if d == 0 or ranks % d == 0])
        lanes = world.random.choice((1, ranks // data)) if data else 0
        settings = {"mesh__lanes": lanes, "mesh__pipeline": ranks // data // lanes, "mesh__data": data} if data else {}
        settings["mesh__wave"] = world.random.choice((0, 1, 2, 8))
        delay = world.random.uniform(0.05, longest)
        whole = world.random.random() < 0.3
        began = time.time()
        job = world.start(ranks, **settings)
        time.sleep(delay)
        victims = job.ranks()
        if job.process.poll() is None and victims:
            victim = world.random.randrange(len(victims))
            kill(descendants(job.process.pid) if whole else [victims[victim]])
            times.killed(world, began)
            code = job.wait(60)
            if code != 0:
                killed += 1
                times.ended(world, before, began)
                print(f"kill {killed}: {ranks} rank(s), mesh {f'{lanes} x {ranks // data // lanes} x {data}' if data else 'chosen'}, "
                      f"{'all of them' if whole else f'number {victim}'} after {delay:.2f} s: "
                      f"{len(before)} -> {len(durable(world))} blocks, exports and results", flush=True)
                continue
        code = job.wait()
        check(code == 0, f"exit code {code} without a kill:\n{job.output()}")
        times.ended(world, before, began)
        world.check_products(f"finished after {killed} kills")
        finished += 1
        print(f"done after {killed} kills in all: same bits; from the start again", flush=True)
        world.clear()
    world.finish(2)
    world.check_products("after the last kill")
    world.verify()
    print(f"{killed} kills, {finished + 1} runs finished in spite of them: same bits")
    print(times)


def stages(world):
    """Three recipes of GPTQ on 2 and on 4 stages of a rank each, killed as a whole at random moments and started again."""
    settings = {"recipes": "[{method: gptq, bits: 4}, {method: gptq, bits: 3}, {method: gptq, bits: 2}]",
                "export": "{formats: []}", "evaluate": "{original: false}"}
    for count in (2, 4):
        world.clear()
        lost, blocks, restarts, killed = collections.defaultdict(list), [], [], 0
        while killed < world.kills:
            before = len(world.blocks())
            began = time.time()
            job = world.start(count, mesh__pipeline=count, mesh__data=1, **settings)
            while len(world.blocks()) == before and job.process.poll() is None:
                time.sleep(0.01)
            restarts.append(time.time() - began)
            time.sleep(world.random.uniform(0, 3 * statistics.median(blocks or [1.0])))
            ended = job.process.poll() is not None
            kill(descendants(job.process.pid))
            at = time.time()
            job.wait(60)
            last = {}
            for line in (world.run / "journal.jsonl").read_text(errors="replace").splitlines():
                event = json.loads(line) if line.endswith("}") else {}
                when = datetime.datetime.fromisoformat(event.get("time", "1970-01-01T00:00:00Z").replace("Z", "+00:00")).timestamp()
                if event.get("event") == "block" and when > began:
                    last[event["rank"]] = when
                    blocks.append(event["seconds"])
            if ended:
                world.clear()
                continue
            killed += 1
            for stage, when in last.items():
                lost[stage].append(at - when)
        print(f"{count} stages, {killed} kills; a block takes {statistics.median(blocks):.2f} s in the median; "
              f"from a start to its first new block: median {statistics.median(restarts):.1f} s, at most {max(restarts):.1f} s")
        for stage, seconds in sorted(lost.items()):
            print(f"  stage {stage}: since its last block median {statistics.median(seconds):.2f} s, at most {max(seconds):.2f} s "
                  f"({len(seconds)} kills with work of it in flight)", flush=True)


def signals(world):
    def stop(number, ranks, everyone):
        world.clear()
        job = world.start(ranks)
        world.wait_for_blocks(job, 2)
        kill(job.ranks() if everyone else [job.process.pid], number)
        code = job.wait()
        done = len(world.blocks())
        check(code == STOPPED, f"{number.name}: exit code {code}, not {STOPPED}:\n{job.output()}")
        check(done < UNITS, f"{number.name}: nothing was left to do")
        world.finish(3 - ranks)
        world.check_products(number.name)
        print(f"{number.name} on {ranks} rank(s): exit code {code} with {done} of {UNITS} blocks; resumed on {3 - ranks}: same bits",
              flush=True)

    stop(signal.SIGTERM, 1, everyone=True)
    stop(signal.SIGUSR1, 1, everyone=True)
    stop(signal.SIGTERM, 2, everyone=True)
    stop(signal.SIGUSR1, 2, everyone=False)  # mpirun passes it on

    world.clear()
    seconds = 0.45 * world.reference_seconds()
    starts, code, done = 0, STOPPED, 0
    while code == STOPPED:
        starts += 1
        check(starts <= 30, f"no end in 30 starts, the last one of {seconds:.1f} s: {done} blocks\n{job.output() if starts > 1 else ''}")
        job = world.start(1, limits__minutes=seconds / 60)
        code = job.wait()
        # A machine that has become busy since the reference was made may need all of it to begin.
        if len(world.blocks()) == done:
            seconds *= 1.5
        done = len(world.blocks())
    check(code == 0, f"exit code {code}:\n{job.output()}")
    check(starts > 1, f"a limit of {seconds:.1f} s stopped nothing")
    world.check_products("time limit")
    print(f"a time limit of {seconds:.1f} s: {starts} starts, same bits")


def damage(world):
    world.finish(1)
    block = world.run / "recipes" / "gptq-w4g128" / "block-0002.h5"
    exported = next((world.run / "export" / "gptq-w4g128" / "dense").glob("*.safetensors"))
    whole = block.read_bytes()
    flipped = bytearray(whole)
    flipped[len(flipped) // 2] ^= 1
    harms = {"cut in half": whole[:len(whole) // 2], "one bit flipped": bytes(flipped), "emptied": b""}
    for name, content in harms.items():
        block.write_bytes(content)
        shutil.rmtree(world.run / "export")
        shutil.rmtree(world.run / "results")
        said = world.verify(expect=1)
        check(block.name in said, f"verify does not name {block.name}:\n{said}")
        said = world.finish(2)
        check("block-0002" in said, f"the run does not say that block-0002 was damaged:\n{said}")
        world.check_products(name)
        world.verify()
        print(f"a block's file {name}: found, named, made again: same bits", flush=True)
    exported.write_bytes(exported.read_bytes()[:-1])
    world.verify(expect=1)
    world.finish(1)
    world.check_products("an exported file cut short")
    print("an exported file cut short: found and written again: same bits")
    with open(world.run / "journal.jsonl", "ab") as journal:
        journal.write(b'{"event": "blo')
    world.finish(1)
    world.check_products("a torn line in the journal")
    print("a torn last line in the journal: no harm")


def config(world):
    world.finish(1)
    refused = {
        "calibration.seed": dict(calibration__seed=8),
        "calibration.samples": dict(calibration__samples=48),
        "recipes.gptq-w4g128": dict(recipes="[{method: gptq, bits: 4, group_size: 128, damping: 0.05, name: gptq-w4g128}]"),
        "calibration.smaples": dict(calibration__smaples=3),
        "bist": dict(recipes="[{method: rtn, bist: 4}]"),
        "threads": dict(threads="many"),
    }
    for key, settings in refused.items():
        for ranks in (1, 2):
            said = world.finish(ranks, expect=2, **settings)
            name = key.rpartition(".")[2] if key.endswith("smaples") else key
            check(name in said, f"the key {key} is not named:\n{said}")
        line = next(line for line in said.splitlines() if name in line)
        print(f"{settings}: refused, {line}", flush=True)
    world.finish(1, threads=2, checkpoint__interruption_hours=0)
    world.check_products("other threads and snapshots")
    print("keys that change no result are free to change")


def lock(world):
    first = world.start(1)
    world.wait_for_blocks(first, 1)
    for ranks in (1, 2):
        second = world.start(ranks)
        code = second.wait(60)
        check(code == IN_USE, f"exit code {code}, not {IN_USE}, of a second job on {ranks} rank(s):\n{second.output()}")
        check("in use" in second.output(), f"the second job does not say why:\n{second.output()}")
        print("a second job on the same run:", second.output().strip().splitlines()[0], flush=True)
    check(first.wait() == 0, f"the first job was disturbed:\n{first.output()}")
    world.check_products("with a second job at the door")

    world.clear()
    job = world.start(2)
    world.wait_for_blocks(job, 2)
    (world.run / "lease").unlink()
    code, done = job.wait(60), len(world.blocks())
    check(code == IN_USE, f"exit code {code}, not {IN_USE}, of a job whose run was taken away:\n{job.output()}")
    check("was taken from this job" in job.output(), f"it does not say why it ends:\n{job.output()}")
    check(done < UNITS, "it went on to the end")
    world.finish(1)
    world.check_products("after it was taken away")
    print(f"a run that was taken away: exit code {code} with {done} of {UNITS} blocks; gone on with: same bits")


def disk_full(world):
    if os.geteuid() != 0:
        print("skipped: mounting a small disk needs root")
        return SKIPPED
    world.run.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "roundhouse-test", str(world.run)],
                             capture_output=True, text=True)
    if mounted.returncode != 0:
        print(f"skipped: cannot mount a small disk here: {mounted.stderr.strip()}")
        return SKIPPED
    try:
        total = json.loads(world.reference_file.read_text())["bytes"]

        def resize(size):
            return subprocess.run(["mount", "-o", f"remount,size={size}", str(world.run)], capture_output=True).returncode == 0

        def used():
            disk = os.statvfs(world.run)
            return (disk.f_blocks - disk.f_bfree) * disk.f_frsize

        # What cannot fit is refused before anything is made.
        check(resize(total // 20), "the disk cannot be made small")
        job = world.start(1)
        code, said = job.wait(), job.output()
        check(code == 1 and "not enough room" in said and not world.blocks(), f"exit code {code} on a small disk:\n{said}")

        # Others fill it meanwhile.
        failures = 0
        for percent in (25, 45, 60, 75, 90, 250):
            check(resize(total * 250 // 100), "the disk cannot be made large")
            job = world.start(1 + failures % 2)
            while job.process.poll() is None and used() < total * percent // 100:
                time.sleep(0.001)
            while percent < 100 and job.process.poll() is None and not resize(used() + 4096):
                pass
            code = job.wait()
            if code != 0:
                said = job.output()
                check(code == 1, f"exit code {code}, not 1, on a full disk:\n{said}")
                check("disk full" in said or "No space left" in said, f"does not say that the disk is full:\n{said}")
                failures += 1
                line = next(line for line in said.splitlines() if "disk full" in line or "No space left" in line)
                print(f"disk of {percent} % of what is needed: {len(world.blocks())} of {UNITS} blocks, {line}", flush=True)
        check(failures >= 2, "the disk was never full")
        check(code == 0, f"exit code {code} with room enough:\n{job.output()}")
        world.check_products("with room made")
        world.verify()
        print(f"stopped {failures} times by a full disk, done when room was made: same bits")
    finally:
        subprocess.run(["umount", str(world.run)], check=False)
    return 0


ARCHITECTURES_CONFIG = """
model: {model}
run: {run}
calibration: {{text: {source}/tests/data/tiny-world/calibration.jsonl, samples: 12, sequence_length: 64, seed: 7, shards: 6}}
recipes:
  - {{method: rtn, bits: 4, group_size: 32}}
  - {{method: gptq, bits: 3, group_size: 32}}
  - {{method: awq, bits: 4, group_size: 32}}
  - {{method: signround, bits: 2, group_size: 32, iterations: 10}}
checkpoint: {{interruption_hours: 1.0e-9}}
threads: 1
export: {{formats: [gptq, dense]}}
evaluate: {{perplexity: [{{name: test, text: {source}/tests/data/tiny-world/test.txt, window: 64, limit: 6}}]}}
"""


def architectures(world):
    """The bundled model is a LLaMA; the other architectures, with every method."""
    for name, write in small_models.MODELS.items():
        model = world.folder / name
        write(model, world.source)
        world.config.write_text(ARCHITECTURES_CONFIG.format(model=model, run=world.run, source=world.source))
        world.clear()
        world.finish(1)
        world.verify()
        expected = world.products()
        check(len(expected) > 20, f"{name}: only {len(expected)} files")
        for ranks, pipeline, kill_after in ((2, 1, None), (3, 1, 4), (3, 3, None), (4, 2, 7)):
            world.clear()
            if kill_after is not None:
                job = world.start(ranks, mesh__pipeline=pipeline)
                world.wait_for_blocks(job, kill_after)
                kill(descendants(job.process.pid))
                job.wait()
            world.finish(ranks if kill_after is None else ranks - 1)
            check(world.products() == expected, f"{name} on {ranks} ranks, pipeline {pipeline}, killed after {kill_after}: other bits")
        print(f"{name}: same bits on 1 to 4 ranks and after kills, {len(expected)} files", flush=True)


CASES = {"reference": reference, "meshes": meshes, "architectures": architectures, "kills": kills, "stages": stages, "signals": signals, "damage": damage, "config": config,
         "lock": lock, "disk-full": disk_full, "gradients-reference": reference, "gradients-meshes": meshes, "gradients-kills": kills}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--program", type=pathlib.Path, required=True)
    parser.add_argument("--source", type=pathlib.Path, required=True)
    parser.add_argument("--mpiexec", required=True)
    parser.add_argument("--reference", type=pathlib.Path, required=True)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("case", choices=CASES)
    options = parser.parse_args()

    PR_SET_CHILD_SUBREAPER = 36
    # Ranks whose mpirun was killed come to this process, which ends them.
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    world = World(options)
    try:
        return CASES[options.case](world) or 0
    except Failure as failure:
        print(f"FAILED: {failure}", flush=True)
        return 1
    finally:
        kill(descendants(os.getpid())[1:])
        shutil.rmtree(world.folder, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
