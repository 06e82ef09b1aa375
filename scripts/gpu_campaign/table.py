"""What was measured beside what was reckoned (reckoning.json), for people and for a commit."""

import publish
import settings


def span(low, high):
    return f"{low:.1f}" if low == high else f"{low:.1f} to {high:.1f}"


def row(name, reckoned, measured):
    return f"  {name:34} {reckoned:>14} {'-' if measured is None else f'{measured:.2f}':>10}"


def block_rows(block, full):
    """`full`: seconds by phase of the full problem, as measured; empty if they were not."""
    named = {phase for part in block["parts"] for phase in part["phases"]}
    for part in block["parts"]:
        found = [full[phase] for phase in part["phases"] if phase in full]
        yield row(", ".join(part["phases"]), span(*part["seconds"]), sum(found) if found else None)
    for phase in sorted(set(full) - named):
        yield row(phase, "-", full[phase])
    yield row("together", span(*block["seconds"]), sum(full.values()) if full else None)


def lines():
    reckoning = settings.read_json(settings.HERE / "reckoning.json")
    steps = publish.results({})["steps"]
    gpu = (steps.get("card", {}).get("gpu") or {}).get("name", "no GPU")
    device = gpu if settings.DEVICE == "cuda" else steps.get("card", {}).get("processor", "CPU")
    out = [f"Measured: {device}." + ("" if settings.SIZE == "full" else
                                    " Small shapes, which only try the campaign: not to be compared with what was reckoned."),
           "Reckoned: " + reckoning["statement"], "", f"  {'seconds':34} {'reckoned':>14} {'measured':>10}"]
    for method, block in reckoning["blocks"].items():
        out += [f"{method}, {block['problem']}", *block_rows(block, steps.get(method, {}).get("full_problem", {}))]
    for method in ("squeezellm",):
        if "full_problem_seconds" in steps.get(method, {}):
            out.append(row(method, "-", steps[method]["full_problem_seconds"]))
    out.append("rates of the card, by PyTorch")
    out += [row(name, f"{value:g}", steps.get("rates", {}).get(name)) for name, value in reckoning["rates"].items()]
    text = "\n".join(out) + "\n"
    settings.write_atomically(settings.OUT / "table.txt", text)
    return text
