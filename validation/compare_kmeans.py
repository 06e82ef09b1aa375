#!/usr/bin/env python3
"""Compares the tables of a run's SqueezeLLM recipes with those of scikit-learn's KMeans with the settings of SqueezeLLM's authors
(quantization/nuq.py: one start from k-means++, at most 50 steps, random_state 0 for every row), from the same Fisher information.

    pip install numpy scikit-learn h5py safetensors
    fisher_values MODEL RUN/gradients/windows-100x512.h5 FISHER.safetensors
    compare_kmeans.py --model MODEL --run RUN --fisher FISHER.safetensors [--recipe squeezellm-w3 ...] [--blocks 0-3]
                      [--write OUT] [--jobs N]

Prints for each recipe without a sparse part the sum over rows of the weighted error, of the run's tables and of scikit-learn's, both
rounded to float16 as they are stored, and over the optimum's where the run has RECIPE-exact, too. --write: model directories
OUT/RECIPE and OUT/RECIPE-sklearn, whose perplexities `roundhouse evaluate DIR --text ..` measures; blocks that were not compared are
the run's in both.
"""
import argparse
import concurrent.futures
import json
import os
import pathlib
import shutil
import warnings

os.environ["OMP_NUM_THREADS"] = "1"  # rows are small: processes share them, threads would wait for one another

import h5py
import numpy
import sklearn
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning


def unpack(words, bits, columns):
    """Codes of `bits` bits each, the first in the lowest bits of a row's first word."""
    bit = numpy.unpackbits(words.view(numpy.uint8), axis=1, bitorder="little")[:, :columns * bits]
    return (bit.reshape(len(words), columns, bits) << numpy.arange(bits, dtype=numpy.uint8)).sum(axis=2)


def read_linears(run, recipe):
    """(name of the weight, [rows, cols] of table values) of every linear."""
    for path in sorted((run / "recipes" / recipe).glob("block-*.h5")):
        with h5py.File(path) as file:
            facts = json.loads(file.attrs["attributes"])
            for linear in facts["linears"]:
                name = linear["name"]
                codes = unpack(file[name + ".codes"][:], linear["bits"], linear["cols"])
                table = file[name + ".table"][:].astype(numpy.float32)
                yield facts["block"], name, numpy.take_along_axis(table, codes.astype(numpy.int64), axis=1)


def cluster(rows):
    """Of some rows: what each weight becomes."""
    w, sensitivity, bits = rows
    values = numpy.empty_like(w)
    for row, (x, weight) in enumerate(zip(w, sensitivity)):
        if weight.sum() == 0:
            weight = numpy.ones_like(weight)
        model = KMeans(n_clusters=1 << bits, random_state=0, n_init=1, max_iter=50)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # fewer distinct weights than clusters
            model.fit(x.reshape(-1, 1), sample_weight=weight)
        values[row] = model.cluster_centers_.reshape(-1)[model.labels_].astype(numpy.float16)
    return values


def error(w, sensitivity, values):
    return float((sensitivity.astype(numpy.float64) * (w.astype(numpy.float64) - values) ** 2).sum())


def write_model(source, directory, changed):
    directory.mkdir(parents=True, exist_ok=True)
    for path in source.iterdir():
        if path.is_file() and path.suffix != ".safetensors" and not path.name.endswith(".index.json"):
            shutil.copy(path, directory)
    tensors = {}
    for path in sorted(source.glob("*.safetensors")):
        tensors.update(load_file(path))
    tensors.update(changed)
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})


def compare(arguments, recipe, pool):
    bits = int(recipe.removeprefix("squeezellm-w")[0])
    optimum = arguments.run / "recipes" / (recipe + "-exact")
    best = {(block, name): values for block, name, values in read_linears(arguments.run, recipe + "-exact")} \
        if optimum.is_dir() else None
    first, last = arguments.blocks
    sums = {"ours": 0.0, "sklearn": 0.0, "optimum": 0.0}
    ours, theirs, rows = {}, {}, 0
    with safe_open(arguments.weights, "numpy") as weights, safe_open(arguments.fisher, "numpy") as fisher:
        names = {name.split("layers.")[1]: name for name in fisher.keys()}
        for block, linear, values in read_linears(arguments.run, recipe):
            name = names[f"{block}.{linear}.weight"]
            stored = weights.get_tensor(name)
            ours[name] = theirs[name] = values
            if not first <= block <= last:
                continue
            w, sensitivity = stored.astype(numpy.float32), fisher.get_tensor(name)
            pieces = [(w[i:i + 32], sensitivity[i:i + 32], bits) for i in range(0, len(w), 32)]
            theirs[name] = numpy.concatenate(list(pool.map(cluster, pieces)))
            rows += len(w)
            sums["ours"] += error(w, sensitivity, values)
            sums["sklearn"] += error(w, sensitivity, theirs[name])
            if best:
                sums["optimum"] += error(w, sensitivity, best[block, linear])
    if not best:
        del sums["optimum"]
    print(recipe, f"{rows} rows, weighted errors:", *(f"{who} {sum:.6e}" for who, sum in sums.items()))
    print("   over", *(f"{who}'s: ours {sums['ours'] / sum:.4f}, sklearn {sums['sklearn'] / sum:.4f}"
                       for who, sum in sums.items() if who == ("optimum" if best else "sklearn")), flush=True)
    if arguments.write:
        write_model(arguments.model, arguments.write / recipe, ours)
        write_model(arguments.model, arguments.write / (recipe + "-sklearn"), theirs)


def blocks(text):
    first, _, last = text.partition("-")
    return int(first), int(last or first)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=pathlib.Path, required=True)
    parser.add_argument("--run", type=pathlib.Path, required=True)
    parser.add_argument("--fisher", type=pathlib.Path, required=True)
    parser.add_argument("--recipe", action="append", help="default: every dense SqueezeLLM recipe of the run")
    parser.add_argument("--blocks", type=blocks, default=(0, 10**6), help="only these, as 0-3")
    parser.add_argument("--write", type=pathlib.Path)
    parser.add_argument("--jobs", type=int)
    arguments = parser.parse_args()
    found = list(arguments.model.glob("*.safetensors"))
    if len(found) != 1:
        parser.error(f"{arguments.model}: has {len(found)} safetensors files, not one")
    arguments.weights = found[0]
    recipes = arguments.recipe or sorted(path.name for path in (arguments.run / "recipes").glob("squeezellm-w[234]"))
    print("scikit-learn", sklearn.__version__)
    with concurrent.futures.ProcessPoolExecutor(arguments.jobs) as pool:
        for recipe in recipes:
            compare(arguments, recipe, pool)


if __name__ == "__main__":
    main()
