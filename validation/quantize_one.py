"""Quantizes one model with one library, on the CPU, as its users call it. Started by compare_speed.py with the library's Python:

    PYTHON quantize_one.py LIBRARY METHOD < JOB

JOB: JSON with model, windows (token ids), bits, group_size, iterations, batch_size, threads, checkpoint and dense. Writes the library's
own checkpoint; then, which is not timed, the weights as it rounds them as a Hugging Face directory in float32. Prints a JSON object:
{"seconds", "cpu_seconds", "version"}, from the start of the process until its checkpoint is written.
"""

import importlib.metadata
import json
import logging
import os
import pathlib
import resource
import shutil
import sys
import time

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")


def seconds_of_process():
    ticks = int(pathlib.Path("/proc/self/stat").read_text().rsplit(")", 1)[1].split()[19])
    return time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")


class Tokenizer:
    """Stands for one where token ids are given."""

    pad_token_id = eos_token_id = bos_token_id = None
    pad_token = eos_token = bos_token = None
    padding_side = "right"
    chat_template = None

    def save_pretrained(self, *_, **__):
        return ()


def load(job, dtype):
    import transformers

    return transformers.AutoModelForCausalLM.from_pretrained(job["model"], dtype=dtype).eval()


def samples_of(job):
    import torch

    rows = torch.tensor(job["windows"])
    return [{"input_ids": row[None], "attention_mask": torch.ones_like(row[None])} for row in rows]


def with_auto_round(job, method):
    """Its defaults but for what the job says; bfloat16 and torch.compile are among them."""
    import auto_round

    rounder = auto_round.AutoRound(
        load(job, "auto"), Tokenizer(), bits=job["bits"], group_size=job["group_size"], sym=True, dataset=samples_of(job),
        iters=job["iterations"], nsamples=len(job["windows"]), seqlen=len(job["windows"][0]), batch_size=job["batch_size"],
        device_map="cpu")
    model = rounder.quantize()
    model = model[0] if isinstance(model, tuple) else model
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}  # packing takes them out
    rounder.save_quantized(job["checkpoint"], format="auto_round")
    return "auto-round", lambda: weights


def with_llm_compressor(job, method):
    from datasets import Dataset
    from llmcompressor import oneshot
    from llmcompressor.pipelines.cache import IntermediatesCache

    IntermediatesCache.pin_memory = lambda *_, **__: None  # AWQ's need a GPU's driver, and nothing else does
    scheme = {"group_0": {"targets": ["Linear"], "weights": {
        "num_bits": job["bits"], "type": "int", "symmetric": True, "strategy": "group", "group_size": job["group_size"]}}}
    if method == "gptq":
        from llmcompressor.modifiers.gptq import GPTQModifier

        recipe = [GPTQModifier(config_groups=scheme, ignore=["lm_head"])]
    else:
        from llmcompressor.modifiers.quantization import QuantizationModifier
        from llmcompressor.modifiers.transform.awq import AWQModifier

        recipe = [AWQModifier(), QuantizationModifier(config_groups=scheme, ignore=["lm_head"])]
    rows = [{"input_ids": row, "attention_mask": [1] * len(row)} for row in job["windows"]]
    # Where the bundled model's outliers go through AWQ's trial scales, float16 overflows: it finds no finite loss.
    model = load(job, "float32" if method == "awq" else "auto")
    oneshot(model=model, tokenizer=Tokenizer(), dataset=Dataset.from_list(rows), recipe=recipe,
            num_calibration_samples=len(rows), max_seq_length=len(rows[0]["input_ids"]), batch_size=1)

    def weights():
        from compressed_tensors.quantization.lifecycle.forward import fake_quantize

        tensors = {}
        for name, module in model.named_modules():
            scheme = getattr(module, "quantization_scheme", None)
            if scheme is None or scheme.weights is None:
                continue
            tensors[name + ".weight"] = fake_quantize(
                module.weight, module.weight_scale, getattr(module, "weight_zero_point", None), scheme.weights).detach()
        return {**{name: tensor for name, tensor in model.state_dict().items() if name in names}, **tensors}

    names = names_of(job)
    before = weights()  # packing takes them out
    model.save_pretrained(job["checkpoint"], save_compressed=True)
    return "llmcompressor", lambda: before


def with_gptqmodel(job, method):
    os.environ.setdefault("GPTQMODEL_CPU_WORKERS", "2")  # on two processors it would take one, and ask for two at once
    from gptqmodel import BACKEND, GPTQModel, QuantizeConfig

    config = QuantizeConfig(bits=job["bits"], group_size=job["group_size"], sym=True)
    model = GPTQModel.load(job["model"], config, device="cpu")
    model.quantize([{"input_ids": row, "attention_mask": [1] * len(row)} for row in job["windows"]], batch_size=1,
                   backend=BACKEND.TORCH)
    model.save(job["checkpoint"])
    return "gptqmodel", lambda: unpack_gptq(pathlib.Path(job["checkpoint"]), job)


def unpack_gptq(folder, job):
    """Of a checkpoint of version 1 or 2: its zero points are one less than the real ones, or are the real ones."""
    import torch
    from safetensors.torch import load_file

    tensors = {}
    for path in sorted(folder.glob("*.safetensors")):
        tensors.update(load_file(path))
    version_1 = json.loads((folder / "config.json").read_text())["quantization_config"].get("checkpoint_format", "gptq") == "gptq"
    bits, weights = job["bits"], {}

    def unpacked(words, dim):
        shifts = torch.arange(0, 32, bits)
        values = (words.unsqueeze(dim + 1) >> shifts.view([-1 if d == dim + 1 else 1 for d in range(3)])) & ((1 << bits) - 1)
        return values.flatten(dim, dim + 1)

    for name, tensor in tensors.items():
        base, _, part = name.rpartition(".")
        if part == "qweight":
            codes = unpacked(tensor, 0)  # [in, out]
            zeros = unpacked(tensors[base + ".qzeros"], 1) + (1 if version_1 else 0)
            group = tensors[base + ".g_idx"].long()
            weights[base + ".weight"] = (tensors[base + ".scales"].float()[group] * (codes - zeros[group])).T.contiguous()
        elif part not in ("qzeros", "scales", "g_idx"):
            weights[name] = tensor
    return weights


LIBRARIES = {"auto-round": with_auto_round, "llm-compressor": with_llm_compressor, "gptqmodel": with_gptqmodel}


def names_of(job):
    from safetensors import safe_open

    with safe_open(pathlib.Path(job["model"]) / "model.safetensors", "pt") as file:
        return set(file.keys())


def write_dense(job, weights):
    from safetensors.torch import save_file

    source, folder = pathlib.Path(job["model"]), pathlib.Path(job["dense"])
    folder.mkdir(parents=True, exist_ok=True)
    for path in source.iterdir():
        if path.is_file() and path.suffix != ".safetensors":
            shutil.copy(path, folder)
    names = names_of(job)
    missing = names - set(weights)
    if missing:
        raise SystemExit(f"the library left nothing of {sorted(missing)[:3]}")
    save_file({name: weights[name].float().contiguous() for name in names}, folder / "model.safetensors", metadata={"format": "pt"})


def main():
    library, method = sys.argv[1:]
    job = json.load(sys.stdin)
    import torch

    torch.set_num_threads(job["threads"])
    logging.disable(logging.WARNING)
    print_to, sys.stdout = sys.stdout, sys.stderr
    package, weights = LIBRARIES[library](job, method)
    own, children = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    result = {"seconds": seconds_of_process(), "version": f"{package} {importlib.metadata.version(package)}",
              "cpu_seconds": own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime}
    write_dense(job, weights())
    print(json.dumps(result), file=print_to, flush=True)


if __name__ == "__main__":
    main()
