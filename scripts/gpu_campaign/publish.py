"""Everything known so far, into $OUT: at most eight files of at most 16 MiB."""
import json

import settings
from settings import OUT

FILE_LIMIT = 15 << 20
LOG_LIMIT = 1 << 20  # bytes of each step's log: its beginning and its end


def shortened(path, limit):
    data = path.read_bytes() if path.exists() else b""
    if len(data) > limit:
        data = data[: limit // 4] + b"\n[...]\n" + data[-(limit // 4 * 3 - 16):]
    return data.decode(errors="replace")


def put(name, texts):
    """One file of several parts, each with a line that names it."""
    texts = {title: text for title, text in texts.items() if text}
    if texts:
        text = "".join(f"{title}\n{text.rstrip()}\n\n" for title, text in texts.items())
        settings.write_atomically(OUT / name, text[-FILE_LIMIT:])


def put_journals(name, runs):
    text = "".join(shortened(settings.RUNS / run / "journal.jsonl", 4 << 20) for run in runs)
    if text:
        settings.write_atomically(OUT / name, text)


def results(statuses):
    found = {name: dict(facts) for name, facts in statuses.items()}
    for path in sorted(settings.FACTS.glob("*.json")):
        try:
            found.setdefault(path.stem, {}).update(settings.read_json(path))
        except ValueError as why:
            found.setdefault(path.stem, {})["facts"] = f"unreadable: {why}"
    return {"device": settings.DEVICE, "size": settings.SIZE, "steps": found}


def publish(statuses):
    settings.write_atomically(OUT / "results.json", json.dumps(results(statuses), indent=1) + "\n")
    logs = sorted(settings.LOGS.glob("*.log"), key=lambda path: path.stat().st_mtime)
    put("log.txt", {f"==== {path.stem}": shortened(path, LOG_LIMIT) for path in logs})
    reports = sorted(settings.WORK.glob("sanitizer-*.txt"))
    put("sanitizer.txt", {f"==== {path.stem}": shortened(path, LOG_LIMIT) for path in reports})
    put_journals("journal-bundled.jsonl", ["bundled"])
    put_journals("journal-blocks.jsonl", ["gptq", "signround", "awq", "squeezellm"])
