"""The whole program on an emulated GPU.

program_test.py --program FILE --source FOLDER --mpiexec FILE CASE
"""
import argparse
import json
import os
import pathlib
import subprocess
import sys
import tempfile

sys.path.append(str(pathlib.Path(__file__).resolve().parent.parent / "system"))
import small_models

# BF16 rounds a value by up to 2^-9 of itself, which moves the perplexity of these few windows by about 0.1 %.
MOST_OFF = 0.01

ALL_METHODS = """
  - {method: rtn, bits: 4, group_size: 32}
  - {method: gptq, bits: 3, group_size: 32}
  - {method: awq, bits: 4, group_size: 32, grid_points: 4}
  - {method: signround, bits: 3, group_size: 32, iterations: 3, batch_size: 4}"""
# The call of the emulated runtime that fails, the how manieth of them, and its name in the program's error.
BROKEN_CALLS = [("cudaMemcpyAsync", 1, "cudaMemcpyAsync"), ("cudaMemcpyAsync", 150, "cudaMemcpyAsync"),
                ("cudaMallocFromPoolAsync", 120, "cudaMallocFromPoolAsync"), ("cudaLaunchKernelEx", 100, "a kernel"),
                ("cudaStreamSynchronize", 30, "cudaStreamSynchronize"), ("cudaEventRecord", 60, "cudaEventRecord"),
                ("cudaStreamWaitEvent", 20, "cudaStreamWaitEvent"), ("cublasGemmEx_64", 20, "cublasGemmEx"),
                ("cusolverDnXpotrf", 2, "cusolverDnXpotrf")]


class World:
    def __init__(self, options, folder):
        self.program, self.mpiexec, self.source = options.program.resolve(), options.mpiexec, options.source.resolve()
        self.folder = folder
        self.data = self.source / "tests/data/tiny-world"
        self.environment = dict(os.environ, OMPI_MCA_btl_vader_single_copy_mechanism="none")
        if os.geteuid() == 0:
            self.environment.update(OMPI_ALLOW_RUN_AS_ROOT="1", OMPI_ALLOW_RUN_AS_ROOT_CONFIRM="1")

    def small_model(self):
        small_models.write_mistral(self.folder / "small", self.source)
        return self.folder / "small"

    def start(self, name, config, ranks=1, **environment):
        """Runs `config` in the folder RUN = folder / name and returns the process, ended, and RUN."""
        run, path = self.folder / name, self.folder / f"{name}.yaml"
        path.write_text(f"run: {run}\n{config}")
        launcher = [] if ranks == 1 else [self.mpiexec, "--oversubscribe", "--bind-to", "none", "-n", str(ranks)]
        ended = subprocess.run([*launcher, self.program, "run", path], env=dict(self.environment, **environment),
                               text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        return ended, run

    def finish(self, name, config, ranks=1):
        ended, run = self.start(name, config, ranks)
        if ended.returncode != 0:
            sys.exit(f"{name}: exit code {ended.returncode}\n{ended.stdout}")
        return run


def case_cpu(world):
    """In BF16 on the GPU, the figures of the bundled model agree with the CPU's."""
    perplexity = {}
    text = world.folder / "test.txt"
    text.write_text((world.data / "test.txt").read_text()[:1500])
    for device in ("cpu", "cuda"):
        run = world.finish(device, f"""
model: {world.data}
device: {device}
calibration: {{text: {world.data}/calibration.jsonl, samples: 4, sequence_length: 32, seed: 42, shards: 2}}
recipes: [{{method: gptq, bits: 4, group_size: 128}}]
evaluate: {{perplexity: [{{name: test, text: {text}, window: 64}}]}}
""")
        perplexity[device] = {path.stem: json.loads(path.read_text())["perplexity"]["test"]
                              for path in (run / "results").glob("*.json")}
    if not perplexity["cpu"]:
        sys.exit("the run on the CPU left no results")
    for name, value in perplexity["cpu"].items():
        off = perplexity["cuda"][name] / value - 1
        print(f"{name:12} CPU {value:9.4f}   emulated GPU {perplexity['cuda'][name]:9.4f}   {100 * off:+.2f} %")
        if abs(off) > MOST_OFF:
            sys.exit(f"{name} is more than {100 * MOST_OFF:.0f} % off")


def small_config(world, model, recipes, mesh="{}"):
    return f"""
model: {model}
device: cuda
calibration: {{text: {world.data}/calibration.jsonl, samples: 4, sequence_length: 16, seed: 42, shards: 4}}
mesh: {mesh}
recipes: {recipes}
export: {{formats: [compressed-tensors]}}
"""


def check_seconds(run):
    """The phases of each block in the journal make up its seconds."""
    for line in (run / "journal.jsonl").read_text().splitlines():
        event = json.loads(line)
        if event["event"] == "block" and not (
                {"load", "commit", "other"} <= event["phases"].keys() and sum(event["phases"].values()) <= event["seconds"] + 1e-6):
            sys.exit(f"{event['recipe']}, block {event['block']}: {event['seconds']} seconds, but the phases {event['phases']}")


def case_ranks(world):
    """Teams and pipelines of GPUs leave the bits of one, over messages that know nothing of what is queued."""
    model, bits = world.small_model(), {}
    for ranks, mesh in ((1, "{}"), (2, "{data: 2}"), (3, "{pipeline: 3}"), (4, "{pipeline: 2, data: 2}")):
        run = world.finish(f"ranks-{ranks}", small_config(world, model, ALL_METHODS, mesh), ranks)
        bits[ranks] = {str(path.relative_to(run)): path.read_text() for path in sorted(run.glob("export/*/*/SHA256SUMS"))}
        if len(bits[ranks]) != ALL_METHODS.count("method"):
            sys.exit(f"{ranks} ranks left {list(bits[ranks])}")
        check_seconds(run)
        if bits[ranks] != bits[1]:
            sys.exit(f"other bits on {ranks} ranks: {[name for name in bits[1] if bits[ranks][name] != bits[1][name]]}")


def case_gradients(world):
    """Methods that start from gradients: exports and perplexities, of tables and of linears of different widths, are those of one GPU."""
    model, bits = world.small_model(), {}
    text = world.folder / "test.txt"
    text.write_text((world.data / "test.txt").read_text()[:600])
    gradients = "gradients: {samples: 4, sequence_length: 16}"
    recipes = f"""
  - {{method: squeezellm, bits: 3, {gradients}}}
  - {{method: squeezellm, bits: 4, sparse: {{sensitive: 0.5, outliers: 0.5}}, {gradients}}}
  - {{method: llm-mq, bits: 2.6, group_size: 32, grid_points: 2, {gradients}}}"""
    for ranks, mesh in ((1, "{}"), (2, "{data: 2}"), (3, "{pipeline: 3}")):
        config = small_config(world, model, recipes, mesh).replace("compressed-tensors", "dense")
        config += f"evaluate: {{perplexity: [{{name: test, text: {text}, window: 32, limit: 2}}], original: false}}\n"
        run = world.finish(f"gradients-{ranks}", config, ranks)
        bits[ranks] = {str(path.relative_to(run)): path.read_text()
                       for pattern in ("export/*/*/SHA256SUMS", "results/*.json") for path in sorted(run.glob(pattern))}
        if len(bits[ranks]) != 6:
            sys.exit(f"{ranks} ranks left {list(bits[ranks])}")
        check_seconds(run)
        if bits[ranks] != bits[1]:
            sys.exit(f"other bits on {ranks} ranks: {[name for name in bits[1] if bits[ranks][name] != bits[1][name]]}")
    for name, text in bits[1].items():
        if name.startswith("results"):
            print(name, json.loads(text)["perplexity"]["test"])


def case_errors(world):
    """The first error of CUDA's ends the program with exit code 1 and one line that names the call."""
    config, problems = small_config(world, world.small_model(), ALL_METHODS), []
    for ranks in (1, 2):
        for call, count, name in BROKEN_CALLS if ranks == 1 else BROKEN_CALLS[-2:]:
            ended, _ = world.start(f"{call}-{count}-{ranks}", config, ranks, ROUNDHOUSE_EMULATION_FAIL=f"{call}:{count}")
            lines = [line for line in ended.stdout.splitlines() if f"{name}: " in line]
            print(f"{call} {count}, {ranks} ranks: exit code {ended.returncode}: {lines}")
            if ended.returncode != 1 or not lines or "terminate" in ended.stdout:
                problems.append(f"{call} {count}, {ranks} ranks: exit code {ended.returncode}\n{ended.stdout}")
    if problems:
        sys.exit("\n".join(problems))


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--program", type=pathlib.Path, required=True)
    parser.add_argument("--source", type=pathlib.Path, required=True)
    parser.add_argument("--mpiexec", required=True)
    cases = {name[5:]: case for name, case in globals().items() if name.startswith("case_")}
    parser.add_argument("case", choices=cases)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="roundhouse-emulated-") as folder:
        cases[options.case](World(options, pathlib.Path(folder)))


if __name__ == "__main__":
    main()
