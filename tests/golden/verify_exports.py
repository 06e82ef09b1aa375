"""Loads our exports with the libraries that others load them with, on the CPU, and compares every bit.

    python3 -m venv venv
    venv/bin/pip install torch transformers compressed-tensors safetensors sentencepiece
    venv/bin/pip install gptqmodel --no-build-isolation
    venv/bin/pip install --no-deps autoawq
    venv/bin/pip install --no-deps auto-round py-cpuinfo
    venv/bin/python verify_exports.py [--windows 20] [--text test.txt] EXPORT_DIR...

For each directory: codes, zero points, scales and weights as the library unpacks them, against dequantize.py beside this
file; then the perplexity of the model as the library runs it, in float32 (windows of 512 tokens, BOS once at the start
of the text, the mean over windows of the mean over 511 predictions). Not part of ctest: it needs PyPI and some GB.
"""

import argparse
import importlib.util
import math
import os
import pathlib
import sys

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")

import numpy as np
import sentencepiece
import torch
import transformers

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
import dequantize  # noqa: E402: after the path

WINDOW = 512


def same(ours, theirs):
    theirs = theirs.detach().cpu().numpy()
    return np.array_equal(np.asarray(ours, theirs.dtype), theirs)


def check(results, what, ok):
    done, good = results.get(what, (0, 0))
    results[what] = (done + 1, good + bool(ok))


def weights_of(export, module):
    """What config_groups says of this module."""
    groups = list(export.config["quantization_config"]["config_groups"].values())
    named = [group for group in groups if module in group["targets"]]
    return (named or groups)[0]["weights"]


def check_compressed_tensors(export, results):
    """compressed-tensors' own unpacking, in float16 as stored and in float32."""
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.compressors.pack_quantized.helpers import unpack_from_int32
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme

    compressor = BaseCompressor.get_value_from_registry("pack-quantized")
    stored = dequantize.read_tensors(export.directory)
    for module, linear in export.linears.items():
        arguments = QuantizationArgs(**weights_of(export, module))
        scheme = QuantizationScheme(targets=["Linear"], weights=arguments)
        bits, middle = arguments.num_bits, 1 << arguments.num_bits - 1
        parts = {name[len(module) + 1 :]: torch.from_numpy(tensor.copy())
                 for name, tensor in stored.items() if name.startswith(module + ".")}
        rows, cols = linear.codes.shape
        codes = unpack_from_int32(parts["weight_packed"], bits, torch.Size([rows, cols]))
        check(results, "codes", same(linear.codes - middle, codes))
        check(results, "scales", same(linear.scales, parts["weight_scale"]))
        if "weight_zero_point" in parts:
            zeros = unpack_from_int32(parts["weight_zero_point"], bits, torch.Size(linear.zeros.shape), packed_dim=0)
            check(results, "zeros", same(linear.zeros - middle, zeros))
        # The library multiplies in the type of the scale: one rounding to float16, or none in float32.
        half = compressor.decompress(dict(parts), scheme)["weight"]
        check(results, "weights in float16", same(linear.weight().astype(np.float16), half))
        parts["weight_scale"] = parts["weight_scale"].float()
        exact = compressor.decompress(dict(parts), scheme)["weight"]
        check(results, "weights", same(linear.weight(), exact))


def load_compressed_tensors(export, results):
    groups = export.config["quantization_config"]["config_groups"].values()
    if all(group["weights"]["symmetric"] for group in groups):
        model = transformers.AutoModelForCausalLM.from_pretrained(export.directory, dtype=torch.float32)
        with torch.no_grad():
            model(torch.ones(1, 2, dtype=torch.long))  # decompresses
        for module, linear in export.linears.items():
            check(results, "loaded weights", same(linear.weight(), model.get_submodule(module).weight))
        return model
    # See README.md: by default transformers expects the zero points unpacked, and refuses even what the library wrote.
    # Dequantized while loading, weights are in the type of the scales, so rounded once to float16.
    config = transformers.CompressedTensorsConfig(dequantize=True)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        export.directory, dtype=torch.float32, quantization_config=config)
    for module, linear in export.linears.items():
        rounded = linear.weight().astype(np.float16)
        check(results, "loaded weights in float16", same(rounded, model.get_submodule(module).weight))
    return model


def check_gptq(export, results):
    """GPTQModel's converter to dense weights, which reads the files alone."""
    from gptqmodel.utils.model_dequant import convert_gptq_file

    if "dynamic" in export.config["quantization_config"]:
        return  # it converts one width only
    for file in sorted(export.directory.glob("*.safetensors")):
        dense = convert_gptq_file(file, torch.float32, export.config["quantization_config"], "cpu")
        for module, linear in export.linears.items():
            if module + ".weight" in dense:
                check(results, "weights", same(linear.weight(), dense[module + ".weight"]))


def load_gptq(export, results):
    from gptqmodel import BACKEND, GPTQModel

    model = GPTQModel.load(str(export.directory), device="cpu", backend=BACKEND.GPTQ_TORCH, dtype=torch.float16).model
    for module, linear in export.linears.items():
        theirs = model.get_submodule(module)
        bits = theirs.bits
        check(results, "codes", same(linear.codes, unpack_columns(theirs.qweight, bits)))
        check(results, "scales", same(linear.scales.T, theirs.scales))
        check(results, "groups", same(linear.group_of, theirs.g_idx))
        # The library's own product of stored scale and unpacked step, in float16: one rounding.
        weight = theirs.dequantize_weight().T
        check(results, "loaded weights", same(linear.weight().astype(np.float16), weight))
        # It says itself whether the zero points that it holds are those of version 1, less one.
        less = 1 if module_version(theirs) == 1 else 0
        zeros = unpack_columns(theirs.qzeros.T, bits).T + less
        check(results, "zeros", same(linear.zeros, zeros))
    # For the perplexity: the library's weights in float32.
    dense = transformers.AutoModelForCausalLM.from_config(plain_config(export), dtype=torch.float32)
    state = {name: tensor.float() for name, tensor in model.state_dict().items() if name in dense.state_dict()}
    for module, linear in export.linears.items():
        theirs = model.get_submodule(module)
        theirs.scales = theirs.scales.float()
        state[module + ".weight"] = theirs.dequantize_weight().T.float().contiguous()
        check(results, "loaded weights in float32", same(linear.weight(), state[module + ".weight"]))
    dense.load_state_dict(state)
    return dense


def module_version(module):
    from gptqmodel.quantization import FORMAT

    return module.qzero_format() if module.format == FORMAT.GPTQ else 2


def unpack_columns(words, bits):
    """[k b / 32, n] words to [n, k] values."""
    words = words.detach().cpu().numpy()
    return torch.from_numpy(dequantize.unpack_stream(words.T, words.shape[0] * 32 // bits, bits))


def plain_config(export):
    config = transformers.AutoConfig.from_pretrained(export.directory)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    return config


def load_awq(export, results):
    """AutoAWQ's unpacking and its arithmetic, in a model of dense weights: its own linears need a GPU."""
    # The file alone: the package as a whole wants a transformers of early 2025.
    folder = pathlib.Path(importlib.util.find_spec("awq").origin).parent
    spec = importlib.util.spec_from_file_location("packing_utils", folder / "utils" / "packing_utils.py")
    awq = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(awq)

    stored = dequantize.read_tensors(export.directory)
    group_size = export.config["quantization_config"]["group_size"]
    state = {name: torch.from_numpy(tensor.copy()).float() for name, tensor in export.tensors.items()}
    for module, linear in export.linears.items():
        words, packed, scales = (torch.from_numpy(stored[f"{module}.{part}"].copy())
                                 for part in ("qweight", "qzeros", "scales"))
        codes, zeros = awq.reverse_awq_order(*awq.unpack_awq(words, packed, 4), 4)
        check(results, "codes", same(linear.codes, (codes & 15).T))
        check(results, "zeros", same(linear.zeros, (zeros & 15).T))
        size = linear.codes.shape[1] if group_size == -1 else group_size
        half = awq.dequantize_gemm(words, packed, scales, 4, size).T
        check(results, "weights in float16", same(linear.weight().astype(np.float16), half))
        exact = awq.dequantize_gemm(words, packed, scales.float(), 4, size).T
        check(results, "weights", same(linear.weight(), exact))
        state[module + ".weight"] = exact.contiguous()
    dense = transformers.AutoModelForCausalLM.from_config(plain_config(export), dtype=torch.float32)
    dense.load_state_dict(state)
    return dense


def load_auto_round(export, results):
    """auto-round's own linears, which transformers puts in: what they multiply with, in their float16."""
    model = transformers.AutoModelForCausalLM.from_pretrained(export.directory, dtype=torch.float16)
    state = {name: tensor.float() for name, tensor in model.state_dict().items()}
    for module, linear in export.linears.items():
        with torch.no_grad():
            weight = model.get_submodule(module)(torch.eye(linear.codes.shape[1], dtype=torch.float16)).T
        check(results, "loaded weights in float16", same(linear.weight().astype(np.float16), weight))
        state[module + ".weight"] = torch.from_numpy(linear.weight())
    dense = transformers.AutoModelForCausalLM.from_config(plain_config(export), dtype=torch.float32)
    dense.load_state_dict({name: tensor for name, tensor in state.items() if name in dense.state_dict()})
    return dense


def load_dense(export, results):
    model = transformers.AutoModelForCausalLM.from_pretrained(export.directory, dtype=torch.float32)
    for name, tensor in export.tensors.items():
        check(results, "loaded weights", same(tensor, model.get_parameter(name)))
    return model


def perplexity(model, directory, text, windows):
    processor = sentencepiece.SentencePieceProcessor(model_file=str(directory / "tokenizer.model"))
    ids = [processor.bos_id(), *processor.encode(text)]
    windows = min(windows, len(ids) // WINDOW)
    losses = []
    model.eval()
    with torch.no_grad():
        for i in range(windows):
            window = torch.tensor(ids[i * WINDOW : (i + 1) * WINDOW])
            logits = model(window[None]).logits[0].float()
            losses.append(torch.nn.functional.cross_entropy(logits[:-1], window[1:]).double().item())
    return math.exp(sum(losses) / windows)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("exports", nargs="+", type=pathlib.Path)
    parser.add_argument("--windows", type=int, default=20)
    parser.add_argument("--text", type=pathlib.Path, default=HERE.parent / "data" / "tiny-world" / "test.txt")
    arguments = parser.parse_args()
    text = arguments.text.read_text()
    failures = 0
    print(f"| export | equal | perplexity, {arguments.windows} windows |\n|---|---|---|", flush=True)
    for directory in arguments.exports:
        export, results = dequantize.Export(directory), {}
        method = export.config.get("quantization_config", {}).get("quant_method", "dense")
        if method == "compressed-tensors":
            check_compressed_tensors(export, results)
            model = load_compressed_tensors(export, results)
        elif method == "gptq":
            check_gptq(export, results)
            model = load_gptq(export, results)
        elif method == "awq":
            model = load_awq(export, results)
        elif method == "auto-round":
            model = load_auto_round(export, results)
        else:
            model = load_dense(export, results)
        ppl = perplexity(model, directory, text, arguments.windows)
        failures += sum(done != good for done, good in results.values())
        equal = ", ".join(f"{what} {good}/{done}" for what, (done, good) in results.items())
        print(f"| {'/'.join(directory.parts[-2:])} | {equal} | {ppl:.6f} |", flush=True)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
