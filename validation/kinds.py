"""The recipes that are exported and loaded, and what is said of a load. Needs nothing but Python."""

import re

FORMATS = ["compressed-tensors", "gptq", "awq", "dense"]

# A result is "same" where perplexity and logits are ours; the bounds are several times what float16 costs.
PERPLEXITY_BOUND = 0.001  # relative
LOGITS_BOUND = 0.005  # mean difference over the standard deviation


def recipes():
    """Every kind: each grid of each width and group rounded to nearest, and each method with what changes its files."""
    made = []
    for bits in (2, 3, 4, 8):
        for group_size in (128, -1, 32):
            for symmetric in (True, False):
                made.append({"method": "rtn", "bits": bits, "group_size": group_size, "symmetric": symmetric})
    for symmetric in (True, False):
        for act_order in ("static", "none", "dynamic"):
            made.append({"method": "gptq", "bits": 4, "group_size": 128, "symmetric": symmetric,
                         "act_order": act_order})
        for method in ("awq", "signround"):
            for bits in (4, 3):
                recipe = {"method": method, "bits": bits, "group_size": 128, "symmetric": symmetric}
                if method == "signround":
                    recipe["iterations"] = 5
                made.append(recipe)
    # Linears of different widths; lookup tables, which the packed formats do not hold.
    gradients = {"samples": 16, "sequence_length": 128}
    for symmetric in (True, False):
        for tie in ("fused", "none"):
            made.append({"method": "llm-mq", "bits": 3.0, "group_size": 128, "symmetric": symmetric, "tie": tie, "outliers": 0,
                         "grid_points": 4, "gradients": gradients})
    made.append({"method": "llm-mq", "bits": 2.4, "group_size": 128, "symmetric": False, "outliers": 0.5, "grid_points": 4,
                 "gradients": gradients})
    for sparse in (False, True):
        made.append({"method": "squeezellm", "bits": 3, "sparse": sparse, "gradients": gradients})
    # Linears of their own width or left as they are; widths that few formats hold.
    down, first = {"match": '"*.down_proj"', "bits": 8}, {"match": '"model.layers.0.*"', "skip": True}
    for symmetric in (True, False):
        for overrides in ([down], [first], [down, first]):
            made.append({"method": "rtn", "bits": 4, "group_size": 128, "symmetric": symmetric, "overrides": overrides})
        for bits in (5, 6, 7):
            made.append({"method": "rtn", "bits": bits, "group_size": 128, "symmetric": symmetric})
    for recipe in made:
        recipe["name"] = name_of(recipe)
    return made


def name_of(recipe):
    parts = [recipe["method"], f"w{recipe['bits']}"]
    if "group_size" in recipe:
        parts.append("row" if recipe["group_size"] == -1 else f"g{recipe['group_size']}")
        parts.append("sym" if recipe["symmetric"] else "asym")
    parts += [recipe[key] for key in ("act_order", "tie") if key in recipe]
    if recipe.get("sparse") or recipe.get("outliers"):
        parts.append("sparse")
    for override in recipe.get("overrides", []):
        parts.append(override["match"].strip('"*.').replace(".", "-") + ("-skipped" if override.get("skip") else f"-w{override['bits']}"))
    return "-".join(parts)


def holds(form, recipe):
    """Whether the format can: else the program refuses."""
    if recipe["method"] == "squeezellm" or recipe.get("outliers"):
        return form == "dense"
    if recipe.get("act_order") == "dynamic":
        return form in ("gptq", "dense")
    widths = {recipe["bits"], *(override.get("bits", recipe["bits"]) for override in recipe.get("overrides", []))}
    if widths & {5, 6, 7} and form == "gptq":
        return False
    return form != "awq" or widths == {4}


def yaml_of(recipe):
    def text(value):
        if isinstance(value, dict):
            return yaml_of(value)
        if isinstance(value, list):
            return "[" + ", ".join(map(text, value)) + "]"
        return str(value).lower() if isinstance(value, bool) else str(value)

    return "{" + ", ".join(f"{key}: {text(value)}" for key, value in recipe.items()) + "}"


def verdict(result, ours):
    """("same" | "differs" | "refused" | "not tried", why) of what load_one.py says of one export; `ours`: our perplexity."""
    if "not_tried" in result:
        return "not tried", result["not_tried"]
    if "error" in result:
        return "refused", one_line(result["error"])
    off = result["perplexity"] / ours - 1
    logits = result["logits"]
    seen = f"perplexity {off:+.3%}, logits {logits:.4f}"
    if not abs(off) <= PERPLEXITY_BOUND or not logits <= LOGITS_BOUND:  # NaN differs, too
        return "differs", seen
    return "same", seen


def one_line(message):
    """Without line breaks, colours, and what differs from export to export or machine to machine: paths, addresses, modules, shapes."""
    message = re.sub(r"\x1b\[[0-9;]*m", "", message)
    message = re.sub(r"(/[\w.+-]+){2,}/", ".../", message)
    message = re.sub(r"0x[0-9a-f]{6,}", "0x...", message)
    message = re.sub(r"\bmodel\.layers\.(\{[\d, ]*\}|\S)*\.(?=\w+\s)", "", message)
    message = re.sub(r"torch\.Size\(\[[\d, ]*\]\)", "[...]", message)
    message = " ".join(message.split()).replace("|", "/")
    return message if len(message) <= 300 else message[:297] + "..."


def table(columns, rows, cells):
    """Markdown: `cells[row, column]` is a verdict. Equal reasons share a note below."""
    notes = {}
    lines = ["| export | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    for row in rows:
        texts = []
        for column in columns:
            word, why = cells.get((row, column), ("not tried", "not reached"))
            if word != "same":
                word += f" ({notes.setdefault(why, len(notes) + 1)})"
            texts.append(word)
        lines.append(f"| {row} | " + " | ".join(texts) + " |")
    if notes:
        lines += [""] + [f"{number}. {why}" for why, number in notes.items()]
    return "\n".join(lines) + "\n"
