"""Random damage on the files of a finished run: `verify` must see and name every one, and `run` must make good every one, with
the same bits.

damage.py --program FILE --source FOLDER --mpiexec FILE [--tries N] [--seed N]
"""
import argparse
import collections
import pathlib
import random
import sys

from small_run import Failure, SmallRun, check


def flip(content, source):
    at = source.randrange(len(content))
    return content[:at] + bytes([content[at] ^ 1 << source.randrange(8)]) + content[at + 1:]


def cut(content, source):
    return content[:source.randrange(len(content))]


def zero(content, source):
    begin = source.randrange(len(content))
    end = min(len(content), begin + source.randint(1, 4096))
    return content[:begin] + bytes(end - begin) + content[end:]


def append(content, source):
    return content + source.randbytes(source.randint(1, 100))


CHANGES = {"flip": flip, "cut": cut, "zero": zero, "append": append}
KINDS = [*CHANGES, "swap", "remove"]


def damage(run, source):
    """Harms one file, or swaps two; returns what was done and the names of the harmed."""
    while True:
        kind = source.choice(KINDS)
        name, other = source.sample(run.files(), 2)
        path = run.run / name
        content = path.read_bytes()
        if kind == "remove":
            path.unlink()
            return kind, [name]
        if kind == "swap":
            theirs = (run.run / other).read_bytes()
            if theirs == content:
                continue
            path.write_bytes(theirs)
            (run.run / other).write_bytes(content)
            return kind, [name, other]
        changed = CHANGES[kind](content, source)
        if changed != content:
            path.write_bytes(changed)
            return kind, [name]


def is_named(name, lines):
    return any(all(part in line for part in pathlib.PurePath(name).parts) for line in lines)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--program", type=pathlib.Path, required=True)
    parser.add_argument("--source", type=pathlib.Path, required=True)
    parser.add_argument("--mpiexec", required=True)
    parser.add_argument("--tries", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    source = random.Random(options.seed)
    run = SmallRun(options)
    counts = collections.Counter()
    try:
        run.finish()
        whole = run.call("verify", run.run).strip()
        print(f"seed {options.seed}, {len(run.files())} files, {whole}", flush=True)
        expected = run.hashes()
        for number in range(options.tries):
            kind, names = damage(run, source)
            what = f"try {number}: {kind} {' and '.join(names)}"
            *lines, last = run.call("verify", run.run, expect=1).splitlines()
            for name in names:
                check(is_named(name, lines), f"{what}: {name} is not named:\n" + "\n".join(lines))
            said = run.finish()
            actual = run.hashes()
            differing = sorted(path for path in expected.keys() | actual.keys() if expected.get(path) != actual.get(path))
            check(not differing, f"{what}: not made good: {' '.join(differing)}\n{said}")
            counts[kind] += 1
            if number % 50 == 49:
                print(f"{number + 1} damages seen, named and made good: {dict(counts)}", flush=True)
            if number % 10 == 9 or number + 1 == options.tries:
                run.call("verify", run.run)
    except Failure as failure:
        print(f"FAILED: {failure}", flush=True)
        return 1
    print(f"{options.tries} damages, all seen, named and made good with the same bits")
    return 0


if __name__ == "__main__":
    sys.exit(main())
