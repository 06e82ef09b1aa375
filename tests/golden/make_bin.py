"""PyTorch checkpoints, small ones, by PyTorch itself.

    python3 make_bin.py               writes bin/ beside this file

Needs torch and numpy. bin/opt and bin/mistral are models of make_logits.py; bin/tensors.bin has tensors of every kind, their
values 0, 1, 2, ...; bin/legacy.bin is in the format of before PyTorch 1.6.
"""

import collections
import json
import pathlib

import torch

from make_logits import MODELS, formula_weight, shapes

BIN = pathlib.Path(__file__).resolve().parent / "bin"


def weights_of(name, dtype):
    config = MODELS[name]["config"]
    return {tensor: formula_weight(tensor, shape).to(dtype) for tensor, shape in shapes(config).items()}


def directory_of(name):
    directory = BIN.parent / MODELS[name]["directory"]
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(MODELS[name]["config"], indent=1) + "\n")
    return directory


def write_opt():
    weights = weights_of("opt-bin", torch.float16)
    state = {name.removeprefix("model."): tensor for name, tensor in weights.items()}
    state["decoder.version"] = torch.tensor([3.0])
    state["lm_head.weight"] = state["decoder.embed_tokens.weight"]  # one storage, as tied weights are saved
    torch.save(collections.OrderedDict(state), directory_of("opt-bin") / "pytorch_model.bin")


def write_mistral():
    weights = weights_of("mistral-bin-sharded", torch.bfloat16)
    directory = directory_of("mistral-bin-sharded")
    names, shard_of = sorted(weights), {}
    for i, part in enumerate([names[::2], names[1::2]]):
        file = f"pytorch_model-{i + 1:05}-of-00002.bin"
        torch.save({name: weights[name] for name in part}, directory / file)
        shard_of |= {name: file for name in part}
    index = {"metadata": {"total_size": sum(w.numel() * 2 for w in weights.values())}, "weight_map": shard_of}
    (directory / "pytorch_model.bin.index.json").write_text(json.dumps(index, indent=1) + "\n")


def write_tensors():
    def numbers(n, dtype):
        return torch.arange(n).to(dtype)

    shared = numbers(10, torch.float32)
    state = {
        "float32": numbers(6, torch.float32).reshape(2, 3),
        "float16": numbers(6, torch.float16).reshape(3, 2),
        "bfloat16": numbers(5, torch.bfloat16),
        "int64": numbers(3, torch.int64),
        "int32": numbers(3, torch.int32),
        "uint8": numbers(3, torch.uint8),
        "float64": numbers(3, torch.float64),
        "bool": numbers(2, torch.bool),
        "scalar": torch.tensor(7.0),
        "empty": torch.zeros(0, 4),
        "first half": shared[:5],
        "second half": shared[5:],
        "transposed": shared.reshape(2, 5).T,
        "every other": shared[::2],
        "expanded": torch.tensor([1.0]).expand(1000),
        "ones": shared[3:4].reshape(1, 1, 1),
    }
    torch.save(state, BIN / "tensors.bin")
    torch.save({"w": numbers(3, torch.float32)}, BIN / "legacy.bin", _use_new_zipfile_serialization=False)


if __name__ == "__main__":
    write_opt()
    write_mistral()
    write_tensors()
