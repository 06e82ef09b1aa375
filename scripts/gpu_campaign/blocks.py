"""Two blocks of Llama-2-70B's shape by each method, through `roundhouse run`, and what the full problem would take.

Samples are few; what grows with their number is scaled up. The first block pays for pinned memory and libraries, the last one counts.
"""
import json
import subprocess
import time

import settings

SHAPES = {"full": "llama-2-70b", "small": "tiny-world", "smoke": "tiny-world"}
# Samples, length and drawing that are run. The bundled texts are shorter than 2048 tokens: packed.
LONG = {"full": (48, 2048, "packed"), "small": (8, 256, "windows"), "smoke": (4, 64, "windows")}
SHORT = {"full": (65, 512, "windows"), "small": (9, 128, "windows"), "smoke": (4, 64, "windows")}
STEPS_RUN = {"full": (4, 16), "small": (2, 6), "smoke": (1, 2)}  # SignRound's iterations

MODEL_OVER = settings.WORK / "model.over"  # whatever became of it
METHODS = ("gptq", "signround", "awq", "squeezellm")
WITH_SAMPLES = {"forward", "gram", "target", "output"}  # phases whose seconds grow with the number of samples
EVERY_STEP = {"fetch", "round", "forward", "backward", "loss", "keep", "step"}  # SignRound's, with its steps
FULL_SAMPLES, FULL_STEPS = 512, 200  # the papers' problems; AWQ's 65 x 512 is run as it is


def synthesize(step):
    try:
        settings.check("roundhouse", "synth", "--like", SHAPES[settings.SIZE], "--blocks", 2,
                       "--tokenizer", settings.BUNDLED_MODEL, settings.MODEL)
    finally:
        MODEL_OVER.touch()


def wait_for_model():
    while not MODEL_OVER.exists():
        time.sleep(0.2)
    if not (settings.MODEL / "config.json").exists():  # written last
        raise settings.Failed("the model was not synthesized: see step model")


def quantize(name, problem, recipes):
    wait_for_model()
    samples, length, drawing = problem
    config = {"model": str(settings.MODEL), "run": str(settings.RUNS / name), "device": settings.DEVICE, "recipes": recipes,
              "calibration": {"text": str(settings.BUNDLED_MODEL / "calibration.jsonl"), "samples": samples,
                              "sequence_length": length, "drawing": drawing},
              "memory": {"activations_gib": 60 if settings.SIZE == "full" else 1}, "checkpoint": {"interruption_hours": 0},
              "evaluate": {"original": False}}
    path = settings.WORK / f"{name}.yaml"
    path.write_text(json.dumps(config))  # JSON is YAML
    settings.check("roundhouse", "run", path)


def last_blocks(name):
    """By recipe: seconds of every block, and of the last one by phase; "other" is what no phase measures."""
    recipes = {}
    with open(settings.RUNS / name / "journal.jsonl") as journal:
        for event in filter(lambda event: event["event"] == "block", map(json.loads, journal)):
            facts = recipes.setdefault(event["recipe"], {"seconds_by_block": []})
            facts["seconds_by_block"].append(event["seconds"])
            phases = event["phases"]
            facts["phases"] = {**phases, "other": phases["other"] + event["seconds"] - sum(phases.values())}
            facts["tflops"] = {phase: flops / phases[phase] / 1e12 for phase, flops in event["flops"].items() if phases.get(phase)}
            facts["iterations"] = event.get("iterations")
    return recipes


def report(step, name, full):
    settings.note(step, full_problem=full, full_problem_seconds=sum(full.values()))
    phases = ", ".join(f"{phase} {seconds:.2f}" for phase, seconds in full.items())
    print(f"{name}: {sum(full.values()):.2f} s a block of the full problem ({phases})")


def scaled(phases, factor):
    return {phase: seconds * (factor if phase in WITH_SAMPLES else 1) for phase, seconds in phases.items()}


def measure_one(step, problem, full_samples, recipe):
    quantize(step, problem, [recipe])
    recipes = last_blocks(step)
    settings.note(step, problem=problem, recipes=recipes)
    for name, facts in recipes.items():
        report(step, name, scaled(facts["phases"], full_samples / problem[0]))


def recipe(method, **options):
    return {"method": method, "bits": 4, "group_size": 128, **options}


def gptq(step):
    measure_one(step, LONG[settings.SIZE], FULL_SAMPLES, recipe("gptq"))


def awq(step):
    problem = SHORT[settings.SIZE]
    measure_one(step, problem, problem[0], recipe("awq"))


def signround(step):
    """At two numbers of steps, to tell what a step costs from what is paid once."""
    problem = LONG[settings.SIZE]
    quantize(step, problem, [recipe("signround", iterations=n, name=f"signround-{n}") for n in STEPS_RUN[settings.SIZE]])
    recipes = last_blocks(step)
    settings.note(step, problem=problem, recipes=recipes)
    few, many = (facts for _, facts in sorted(recipes.items(), key=lambda item: item[1]["iterations"]))
    steps = many["iterations"]
    full = {phase: seconds * FULL_STEPS / steps if phase in EVERY_STEP else seconds for phase, seconds in many["phases"].items()}
    full |= scaled({phase: full[phase] for phase in ("target", "output")}, FULL_SAMPLES / problem[0])
    # What no phase measures may be part of a step, too.
    other = (many["phases"]["other"] - few["phases"]["other"]) / (steps - few["iterations"])
    full["other"] += max(0.0, other) * (FULL_STEPS - steps)
    report(step, "signround", full)


def squeezellm(step):
    wanted = {"method": "squeezellm", "bits": 4}
    # Floors of given rates: reads the recipe and runs nothing.
    asked = subprocess.run(settings.command("block_bench", "--floors", "1,1,1", "--recipe", json.dumps(wanted)),
                           env=settings.environment(), capture_output=True, text=True)
    if "is not one of" in asked.stderr:
        raise settings.Skipped(f"not built: {asked.stderr.strip()}")
    problem = LONG[settings.SIZE]
    measure_one(step, problem, problem[0], wanted)
