"""The bundled model by every method: perplexities beside the CPU's, and the same bits twice."""
import hashlib
import json
import math

import settings

CONFIG = settings.HERE / "bundled_model.yaml"
BASELINE = settings.HERE / "cpu_baseline.json"
MOST_OFF = 0.02  # of a perplexity: BF16 instead of F32, and 30 steps of SignRound that take another path

# A few seconds on a CPU instead of a minute.
SMOKE = {
    "calibration.samples": 4, "calibration.sequence_length": 64,
    "recipes": [{"method": method, "bits": 3, "group_size": 128} for method in ("rtn", "gptq")],
    "evaluate.perplexity": [{"name": "test", "text": "tests/data/tiny-world/test.txt", "window": 512, "limit": 1}],
}


def config_hash():
    return hashlib.sha256(CONFIG.read_bytes()).hexdigest()


def quantize(name, **changes):
    changes = {"run": str(settings.RUNS / name), "device": settings.DEVICE, "memory.activations_gib": 4,
               **(SMOKE if settings.SIZE == "smoke" else {}), **changes}
    words = [word for key, value in changes.items()
             for word in ("--set", f"{key}={value if isinstance(value, str) else json.dumps(value)}")]
    settings.check("roundhouse", "run", CONFIG, *words)


def perplexities(name):
    results = map(settings.read_json, sorted((settings.RUNS / name / "results").glob("*.json")))
    return {result["recipe"]: result["perplexity"]["test"] for result in results}


def compare(step):
    quantize("bundled")
    found = perplexities("bundled")
    if settings.SIZE == "smoke":
        settings.note(step, perplexity=found)
        print("not compared: this is a smoke test's size")
        return
    baseline = settings.read_json(BASELINE)
    if baseline["config_sha256"] != config_hash():
        raise settings.Failed(f"{BASELINE.name} was made with another {CONFIG.name}: run {baseline['command']}")
    cpu = baseline["perplexity"]
    if set(cpu) != set(found):
        raise settings.Failed(f"recipes differ from the CPU's: {sorted(set(cpu) ^ set(found))}")
    rows = {name: {"device": value, "cpu": cpu[name], "ratio": value / cpu[name]} for name, value in found.items()}
    deviations = [abs(row["ratio"] - 1) for row in rows.values()]
    worst = max(math.inf if math.isnan(deviation) else deviation for deviation in deviations)
    settings.note(step, perplexity=rows, worst_difference=worst)
    for name, row in rows.items():
        print(f"{name:32} {row['device']:10.5f}   CPU {row['cpu']:10.5f}   {100 * (row['ratio'] - 1):+.3f} %")
    if worst >= MOST_OFF:
        raise settings.Failed(f"{100 * worst:.2f} % from the CPU's perplexities, more than {100 * MOST_OFF:.0f} %")
    print(f"largest difference from the CPU: {100 * worst:.3f} %")


def again(step):
    first = settings.RUNS / "bundled/recipes"
    records = sorted(path.relative_to(first) for path in first.rglob("*.h5"))
    if not (settings.RUNS / "bundled/results").is_dir():
        raise settings.Skipped("the bundled model was not quantized to the end the first time")
    quantize("again", **{"evaluate.perplexity": []})
    second = settings.RUNS / "again/recipes"
    differing = [str(path) for path in records if (first / path).read_bytes() != (second / path).read_bytes()]
    settings.note(step, records=len(records), differing=differing)
    if differing or not records:
        raise settings.Failed(f"{len(differing)} of {len(records)} records differ: {' '.join(differing)}")
    print(f"{len(records)} records, the same bits twice")
