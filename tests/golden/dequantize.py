"""An independent reader of our exports: safetensors, the packed layouts and the arithmetic, in plain NumPy.

    dequantize.py show DIR                what is in an export
    dequantize.py compare DIR_A DIR_B     both hold the same weights (rounded alike where one is float16)
    dequantize.py canonical DIR FILE      codes, zero points, scales and groups are those of FILE (export_samples)
    dequantize.py matrix PROGRAM MODEL    makes exports with export_samples for every grid and compares all of them

Shares no code with the program: the layouts are read as their formats describe them, a bit at a time.
"""

import hashlib
import json
import pathlib
import re
import subprocess
import sys
import tempfile

try:
    import numpy as np
except ImportError:
    print("needs NumPy: skipped")
    sys.exit(77)

DTYPES = {"F32": "<f4", "F16": "<f2", "U8": "u1", "I32": "<i4", "U32": "<u4", "I64": "<i8"}


class Wrong(Exception):
    pass


def expect(ok, what):
    if not ok:
        raise Wrong(what)


# ------------------------------------------------------------------------------------------------------- the container


def read_safetensors(path):
    data = path.read_bytes()
    expect(len(data) >= 8, f"{path}: too short")
    length = int.from_bytes(data[:8], "little")
    expect(8 + length <= len(data), f"{path}: header runs past the end")
    header = json.loads(data[8 : 8 + length].decode("utf-8"))
    metadata = header.pop("__metadata__", {})
    tensors, end = {}, 0
    for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        first, last = entry["data_offsets"]
        expect(first == end, f"{path}: a hole or an overlap before {name}")
        dtype, shape = np.dtype(DTYPES[entry["dtype"]]), entry["shape"]
        count = int(np.prod(shape, dtype=np.int64))
        expect(last - first == count * dtype.itemsize, f"{path}: {name} has another size than its shape")
        tensors[name] = np.frombuffer(data, dtype, count, 8 + length + first).reshape(shape)
        end = last
    expect(8 + length + end == len(data), f"{path}: bytes after the last tensor")
    return tensors, metadata


def check_sums(directory):
    listed = {}
    for line in (directory / "SHA256SUMS").read_text().splitlines():
        digits, name = re.fullmatch(r"([0-9a-f]{64})  (.+)", line).groups()
        listed[name] = digits
    there = {path.relative_to(directory).as_posix() for path in directory.rglob("*") if path.is_file()} - {"SHA256SUMS"}
    expect(there == set(listed), f"{directory}: SHA256SUMS lists {sorted(listed)}, there are {sorted(there)}")
    for name, digits in listed.items():
        expect(hashlib.sha256((directory / name).read_bytes()).hexdigest() == digits, f"{directory}: {name} differs")


def read_tensors(directory):
    index = directory / "model.safetensors.index.json"
    files = ["model.safetensors"]
    if index.exists():
        listing = json.loads(index.read_text())
        files = sorted(set(listing["weight_map"].values()))
    tensors = {}
    for file in files:
        held, metadata = read_safetensors(directory / file)
        expect(metadata.get("format") == "pt", f"{file}: no metadata format pt")
        for name in held:
            expect(name not in tensors, f"{name} is in two files")
            expect(not index.exists() or listing["weight_map"].get(name) == file, f"{name} is not where the index says")
        tensors.update(held)
    if index.exists():
        expect(set(tensors) == set(listing["weight_map"]), f"{index}: lists other tensors")
        total = sum(tensor.nbytes for tensor in tensors.values())
        expect(listing["metadata"]["total_size"] == total, f"{index}: total_size")
    return tensors


# --------------------------------------------------------------------------------------------------------- the layouts


def unpack_stream(words, count, bits):
    """Codes of each row of 32-bit words: value i is bits [i b, i b + b) of the row, the lowest bit first."""
    octets = np.ascontiguousarray(words).view(np.uint32).astype("<u4").view(np.uint8)
    stream = np.unpackbits(octets, axis=-1, bitorder="little")
    expect(not stream[:, count * bits :].any(), "bits after the last value")
    values = stream[:, : count * bits].reshape(len(words), count, bits)
    return (values << np.arange(bits, dtype=np.uint8)).sum(axis=-1, dtype=np.int32)


class Linear:
    """codes [n, k], scales [n, g], zeros [n, g], group_of [k]: the weight is scale * (code - zero)."""

    def __init__(self, codes, scales, zeros, group_of):
        self.codes, self.scales, self.zeros, self.group_of = codes, scales, zeros, group_of

    def weight(self):
        steps = self.codes - self.zeros[:, self.group_of]
        return self.scales.astype(np.float32)[:, self.group_of] * steps.astype(np.float32)


class TableLinear:
    """codes [n, k], table [n, 2^b], and entries (rows, cols, vals) on top: the weight is table[n, code] + entries."""

    def __init__(self, codes, table, sparse):
        self.codes, self.table, self.sparse = codes, table, sparse

    def weight(self):
        weight = np.take_along_axis(self.table, self.codes.astype(np.int64), axis=1)
        if self.sparse:
            offsets, columns, values = self.sparse
            np.add.at(weight, (np.repeat(np.arange(len(weight)), np.diff(offsets)), columns), values)
        return weight


def take(tensors, name, dtype, shape):
    expect(name in tensors, f"{name} is missing")
    tensor = tensors.pop(name)
    expect(tensor.dtype == np.dtype(dtype) and tensor.shape == tuple(shape),
           f"{name}: {tensor.dtype} {tensor.shape} instead of {dtype} {shape}")
    return tensor


def group_count(cols, group_size):
    size = cols if group_size in (None, -1) else group_size
    expect(cols % size == 0, f"groups of {size} in {cols} columns")
    return cols // size, size


def read_compressed_tensors(tensors, module, config):
    expect(config["format"] == "pack-quantized" and config["quantization_status"] == "compressed", "format")
    groups = list(config["config_groups"].values())
    expect("lm_head" in config["ignore"], "ignore")
    if len(groups) > 1:  # every module by its name, in one group
        expect("Linear" not in sum((group["targets"] for group in groups), []), "a class of modules among names")
        groups = [group for group in groups if module in group["targets"]]
        expect(len(groups) == 1, f"{module}: in {len(groups)} groups")
    else:
        expect(groups[0]["targets"] == ["Linear"], "targets")
    scheme = groups[0]["weights"]
    expect(scheme["strategy"] == ("channel" if scheme["group_size"] is None else "group"), "strategy")
    bits = scheme["num_bits"]
    rows, cols = (int(side) for side in take(tensors, module + ".weight_shape", "<i8", [2]))
    groups, size = group_count(cols, scheme["group_size"])
    words = take(tensors, module + ".weight_packed", "<i4", [rows, -(-cols * bits // 32)])
    scales = take(tensors, module + ".weight_scale", "<f2", [rows, groups])
    zeros = np.full([rows, groups], 1 << bits - 1, np.int32)
    if not scheme["symmetric"]:
        packed = take(tensors, module + ".weight_zero_point", "<i4", [-(-rows * bits // 32), groups])
        zeros = unpack_stream(packed.T, rows, bits).T
    return Linear(unpack_stream(words, cols, bits), scales, zeros, np.arange(cols) // size)


# What engines that fuse modules look for in place of each of them.
FUSED = {"q_proj": "qkv_proj", "k_proj": "qkv_proj", "v_proj": "qkv_proj",
         "gate_proj": "gate_up_proj", "up_proj": "gate_up_proj"}


def dynamic_settings(module, config):
    """The settings of the first pattern that the name matches from its start."""

    def first_match(name):
        for pattern, settings in config.get("dynamic", {}).items():
            expect(pattern.startswith("+:"), f"{pattern}: not about a quantized module")
            if re.match(pattern[2:], name):
                return settings
        return {}

    head, _, name = module.rpartition(".")
    settings = first_match(module)
    parts = [part for part in FUSED if name in FUSED and FUSED[part] == FUSED[name]]
    if parts and all(first_match(f"{head}.{part}") == settings for part in parts):
        expect(first_match(f"{head}.{FUSED[name]}") == settings, f"{module}: other settings where it is fused")
    return settings


def read_gptq(tensors, module, config):
    expect(config["format"] == config["checkpoint_format"], "format and checkpoint_format differ")
    config = config | dynamic_settings(module, config)
    bits, version = config["bits"], {"gptq": 1, "gptq_v2": 2}[config["format"]]
    group_of = tensors.pop(module + ".g_idx")
    cols = len(group_of)
    groups, size = group_count(cols, config["group_size"])
    expect(config["desc_act"] or np.array_equal(group_of, np.arange(cols) // size), f"{module}: g_idx")
    expect(np.array_equal(np.bincount(group_of, minlength=groups), np.full(groups, size)), f"{module}: g_idx")
    rows = tensors[module + ".scales"].shape[1]
    words = take(tensors, module + ".qweight", "<i4", [cols * bits // 32, rows])
    scales = take(tensors, module + ".scales", "<f2", [groups, rows])
    packed = take(tensors, module + ".qzeros", "<i4", [groups, rows * bits // 32])
    zeros = unpack_stream(packed, rows, bits)
    if version == 1:
        zeros = zeros + 1
        expect(zeros.max() < 1 << bits, f"{module}: a zero point that version 1 cannot say")
    if config["sym"]:
        expect((zeros == 1 << bits - 1).all(), f"{module}: symmetric, but not the middle")
    return Linear(unpack_stream(words.T, cols, bits), scales.T, zeros.T, group_of)


def read_awq(tensors, module, config):
    expect(config["version"] == "gemm" and config["bits"] == 4 and config["zero_point"] is True, "version gemm")
    cols = tensors[module + ".qweight"].shape[0]
    groups, size = group_count(cols, config["group_size"])
    rows = tensors[module + ".scales"].shape[1]
    words = take(tensors, module + ".qweight", "<i4", [cols, rows // 8])
    packed = take(tensors, module + ".qzeros", "<i4", [groups, rows // 8])
    scales = take(tensors, module + ".scales", "<f2", [groups, rows])
    expect(module + ".g_idx" not in tensors, f"{module}: a g_idx")
    # Output j of a word's eight is in the j-th of these nibbles.
    nibble = [0, 4, 1, 5, 2, 6, 3, 7]

    def eights(rows_of_words):
        fours = unpack_stream(rows_of_words, 8 * rows_of_words.shape[1], 4).reshape(len(rows_of_words), -1, 8)
        return fours[:, :, nibble].reshape(len(rows_of_words), -1)

    return Linear(eights(words).T, scales.T, eights(packed).T, np.arange(cols) // size)


def read_auto_round(tensors, module, config):
    expect(config["data_type"] == "int" and module.startswith(config["block_name_to_quantize"] + "."), "auto-round")
    config = config | config.get("extra_config", {}).get(module, {})
    bits, less = config["bits"], {"auto_round:auto_gptq": 1, "auto_round": 0}[config["packing_format"]]
    expect(less == config["sym"], "zero points less one, of symmetric grids alone")
    groups, rows = tensors[module + ".scales"].shape
    cols = tensors[module + ".qweight"].shape[0] * 32 // bits
    expect((groups, cols // groups) == group_count(cols, config["group_size"]), f"{module}: groups")
    words = take(tensors, module + ".qweight", "<i4", [cols * bits // 32, rows])
    scales = take(tensors, module + ".scales", "<f2", [groups, rows])
    zeros = unpack_stream(take(tensors, module + ".qzeros", "<i4", [groups, rows * bits // 32]), rows, bits) + less
    return Linear(unpack_stream(words.T, cols, bits), scales.T, zeros.T, np.arange(cols) // (cols // groups))


def read_squeezellm(tensors, module, config):
    bits = config["wbits"]
    table = tensors.pop(module + ".lookup_table")
    expect(table.dtype == np.dtype("<f4") and table.shape[1] == 1 << bits, f"{module}: lookup_table")
    rows, cols = len(table), tensors[module + ".qweight"].shape[0] * 32 // bits
    words = take(tensors, module + ".qweight", "<i4", [cols * bits // 32, rows])
    sparse = None
    if config["include_sparse"]:
        offsets = take(tensors, module + ".rows", "<i4", [rows + 1])
        sparse = (offsets, take(tensors, module + ".cols", "<i4", [offsets[-1]]),
                  take(tensors, module + ".vals", "<f4", [offsets[-1]]))
    return TableLinear(unpack_stream(words.T, cols, bits), table, sparse)


READERS = {
    "compressed-tensors": (".weight_packed", read_compressed_tensors),
    "gptq": (".qweight", read_gptq),
    "awq": (".qweight", read_awq),
    "auto-round": (".qweight", read_auto_round),
    "squeezellm": (".qweight", read_squeezellm),
}

# ---------------------------------------------------------------------------------------------------------------- GGUF


class Bytes:
    """Values from the front of a file."""

    NUMBERS = {0: "<u1", 1: "<i1", 2: "<u2", 3: "<i2", 4: "<u4", 5: "<i4", 6: "<f4", 7: "?", 10: "<u8", 11: "<i8", 12: "<f8"}

    def __init__(self, data):
        self.data, self.at = data, 0

    def number(self, dtype):
        value = np.frombuffer(self.data, dtype, 1, self.at)[0]
        self.at += value.itemsize
        return value.item()

    def text(self):
        length = self.number("<u8")
        self.at += length
        return bytes(self.data[self.at - length : self.at])

    def value(self, kind):
        if kind == 8:
            return self.text()
        if kind == 9:
            inner, count = self.number("<u4"), self.number("<u8")
            return [self.value(inner) for _ in range(count)]
        return self.number(self.NUMBERS[kind])


def halves(blocks, at):
    return blocks[:, at : at + 2].copy().view("<f2").astype(np.float32)


def low_and_high(octets):
    """The low halves of bytes, then the high ones."""
    return np.concatenate([octets & 15, octets >> 4], axis=-1).astype(np.float32)


def pairs(octets):
    """Of each 32 bytes the lowest two bits, then the next."""
    return np.concatenate([octets[:, first : first + 32] >> shift & 3
                           for first in (0, 32) for shift in (0, 2, 4, 6)], axis=-1).astype(np.float32)


def dequantize_q5_0(blocks):
    high = np.unpackbits(blocks[:, 2:6], axis=-1, bitorder="little")
    return halves(blocks, 0) * (low_and_high(blocks[:, 6:]) + 16 * high - 16)


def dequantize_q2_k(blocks):
    scale, offset = (np.repeat(part.astype(np.float32), 16, axis=-1) for part in (blocks[:, :16] & 15, blocks[:, :16] >> 4))
    return halves(blocks, 80) * scale * pairs(blocks[:, 16:80]) - halves(blocks, 82) * offset


def dequantize_q3_k(blocks):
    low = low_and_high(blocks[:, 96:104])
    high = np.concatenate([blocks[:, 104:108] >> shift & 3 for shift in (0, 2, 4, 6)], axis=-1)
    scale = np.repeat(low + 16 * high.astype(np.float32) - 32, 16, axis=-1)
    top = np.concatenate([blocks[:, :32] >> bit & 1 for bit in range(8)], axis=-1).astype(np.float32)
    return halves(blocks, 108) * scale * (pairs(blocks[:, 32:96]) + 4 * top - 4)


def dequantize_q4_k(blocks):
    packed = blocks[:, 4:16]
    top = packed[:, :8] >> 6 << 4  # the two high bits of the last four scales, and of the last four offsets
    scale = np.concatenate([packed[:, :4] & 63, packed[:, 8:] & 15 | top[:, :4]], axis=-1).astype(np.float32)
    offset = np.concatenate([packed[:, 4:8] & 63, packed[:, 8:] >> 4 | top[:, 4:]], axis=-1).astype(np.float32)
    codes = np.concatenate([low_and_high(blocks[:, at : at + 32]) for at in range(16, 144, 32)], axis=-1)
    return halves(blocks, 0) * np.repeat(scale, 32, axis=-1) * codes - halves(blocks, 2) * np.repeat(offset, 32, axis=-1)


# By their numbers: weights and bytes of a block, and what it holds.
BLOCKS = {
    0: (1, 4, lambda blocks: blocks.copy().view("<f4")),
    1: (1, 2, lambda blocks: blocks.copy().view("<f2")),
    2: (32, 18, lambda blocks: halves(blocks, 0) * (low_and_high(blocks[:, 2:]) - 8)),
    6: (32, 22, dequantize_q5_0),
    8: (32, 34, lambda blocks: halves(blocks, 0) * blocks[:, 2:].copy().view("i1").astype(np.float32)),
    10: (256, 84, dequantize_q2_k),
    11: (256, 110, dequantize_q3_k),
    12: (256, 144, dequantize_q4_k),
}
GGUF_NAMES = {"attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm", "attn_q": "self_attn.q_proj",
              "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj",
              "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
              "token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}


class GgufExport:
    """All weights, under their names in the model and with its order of rows."""

    def __init__(self, directory):
        self.directory = pathlib.Path(directory)
        check_sums(self.directory)
        data = np.fromfile(self.directory / "model.gguf", np.uint8)
        file = Bytes(data)
        expect(bytes(data[:4]) == b"GGUF" and Bytes(data[4:]).number("<u4") == 3, "GGUF, version 3")
        file.at = 8
        tensors, keys = file.number("<u8"), file.number("<u8")
        self.keys = {}
        for _ in range(keys):
            name = file.text().decode()
            expect(name not in self.keys, f"{name} stands there twice")
            self.keys[name] = file.value(file.number("<u4"))
        infos = []
        for _ in range(tensors):
            name = file.text().decode()
            shape = [file.number("<u8") for _ in range(file.number("<u4"))]
            infos.append((name, shape[::-1], file.number("<u4"), file.number("<u8")))
        begin, self.tensors = -(-file.at // 32) * 32, {}
        for name, shape, kind, offset in infos:
            weights, size, read = BLOCKS[kind]
            count = int(np.prod(shape)) // weights
            expect(shape[-1] % weights == 0 and offset % 32 == 0, f"{name}: blocks")
            first = begin + offset
            blocks = data[first : first + count * size].reshape(count, size)
            self.tensors[self.model_name(name)] = self.in_order(name, read(blocks).reshape(shape))
        expect(len(self.keys["tokenizer.ggml.tokens"]) == self.keys["llama.vocab_size"], "a token for each row")
        self.linears = {}

    @staticmethod
    def model_name(name):
        stem, kind = name.rsplit(".", 1)
        if stem.startswith("blk."):
            _, block, part = stem.split(".")
            return f"model.layers.{block}.{GGUF_NAMES[part]}.{kind}"
        return f"{GGUF_NAMES[stem]}.{kind}"

    def in_order(self, name, weight):
        part = name.split(".")[-2]
        if part not in ("attn_q", "attn_k"):
            return weight
        heads = self.keys["llama.attention.head_count" + ("_kv" if part == "attn_k" else "")]
        return weight.reshape(heads, -1, 2, weight.shape[1]).swapaxes(1, 2).reshape(weight.shape)

    def weights(self):
        yield from self.tensors.items()



class Export:
    """linears by module name (empty for a dense export), and all other tensors by name."""

    def __init__(self, directory):
        self.directory = pathlib.Path(directory)
        check_sums(self.directory)
        self.config = json.loads((self.directory / "config.json").read_text())
        self.tensors = read_tensors(self.directory)
        self.linears = {}
        quantization = self.config.get("quantization_config")
        if quantization:
            mark, read = READERS[quantization["quant_method"]]
            for name in [name for name in self.tensors if name.endswith(mark)]:
                module = name[: -len(mark)]
                self.linears[module] = read(self.tensors, module, quantization)
        expect(all(name.endswith(".weight") for name in self.tensors), f"{directory}: tensors of no layout")
        expected = {"float16": np.float16, "float32": np.float32}[self.config["torch_dtype"]]
        expect(all(tensor.dtype == expected for tensor in self.tensors.values()), f"{directory}: torch_dtype")

    def weights(self):
        yield from self.tensors.items()
        for module, linear in self.linears.items():
            yield module + ".weight", linear.weight()


# ---------------------------------------------------------------------------------------------------------- the checks


def compare(a, b):
    weights_a, weights_b = dict(a.weights()), dict(b.weights())
    expect(set(weights_a) == set(weights_b), f"{a.directory} and {b.directory} hold different weights")
    for name, mine in weights_a.items():
        other = weights_b[name]
        narrow = np.float16 if np.float16 in (mine.dtype, other.dtype) else np.float32
        expect(np.array_equal(mine.astype(narrow), other.astype(narrow)),
               f"{name} differs between {a.directory} and {b.directory}")
    return len(weights_a)


def check_canonical(export, file):
    canonical, _ = read_safetensors(pathlib.Path(file))
    modules = {name[: -len(".codes")] for name in canonical if name.endswith(".codes")}
    expect(modules == set(export.linears), f"{export.directory} holds other linears than {file}")
    for module, linear in export.linears.items():
        for part in ("codes", "table") if isinstance(linear, TableLinear) else ("codes", "scales", "zeros"):
            expect(np.array_equal(getattr(linear, part), canonical[f"{module}.{part}"]), f"{module}: {part} differ")
        if f"{module}.group_of_column" in canonical:
            expect(np.array_equal(linear.group_of, canonical[f"{module}.group_of_column"]), f"{module}: groups differ")
    return len(modules)


def combinations():
    for bits in (2, 3, 4, 8):
        for grid in ("A-gptq", "S-gptq"):
            for group in (128, 32, -1):
                yield bits, group, grid, []
    yield 3, 64, "S-full", []  # scales below zero
    yield 4, 64, "A-awq", []
    yield 2, -1, "A-ar", []
    yield 4, 128, "A-gptq", ["dynamic"]
    yield 3, 32, "S-full", ["dynamic"]
    yield "2,3,4", 32, "A-awq", []
    yield "4,2", -1, "S-full", []
    for bits in (2, 3, 4):
        yield bits, -1, "table", []
        yield bits, -1, "table", ["sparse"]
    yield "2,3,4", -1, "table", ["sparse"]
    yield "2,3", 64, "A-awq", ["sparse"]


def formats_for(bits, grid, more):
    """Those besides `dense` that hold such linears."""
    if grid == "table":
        return [] if "," in str(bits) else ["squeezellm"]
    if more == ["sparse"]:
        return []
    if more:
        return ["gptq"]
    return ["gptq", "compressed-tensors", "auto_round"] + ["awq"] * (bits == 4) + ["gguf"] * (bits != 8 or grid[0] == "S")


def matrix(program, model):
    for bits, group, grid, more in combinations():
        with tempfile.TemporaryDirectory() as out:
            subprocess.run([program, model, out, "1", str(bits), str(group), grid, *more], check=True)
            out = pathlib.Path(out)
            dense, half = Export(out / "dense"), Export(out / "dense-float16")
            compare(dense, half)
            formats = formats_for(bits, grid, more)
            made = {path.name for path in out.iterdir() if path.is_dir()}
            expect(made == {*formats, "dense", "dense-float16"}, f"{bits} bits, {grid} {more}: {sorted(made)}")
            for name in formats:
                export = GgufExport(out / name) if name == "gguf" else Export(out / name)
                linears = 0 if name == "gguf" else check_canonical(export, out / "canonical.safetensors")
                weights = compare(export, dense)
                print(f"{bits} bits, group {group:>3}, {grid:<6} {' '.join(more):<7} {name:<18} {linears} linears "
                      f"and {weights} weights equal", flush=True)


def main(arguments):
    match arguments:
        case ["show", directory]:
            export = Export(directory)
            for module, linear in sorted(export.linears.items()):
                print(module, linear.codes.shape, "groups", linear.scales.shape[1])
            print(len(export.linears), "quantized linears,", len(export.tensors), "other tensors")
        case ["compare", a, b]:
            print(compare(Export(a), Export(b)), "weights equal")
        case ["canonical", directory, file]:
            print(check_canonical(Export(directory), file), "linears equal")
        case ["matrix", program, model]:
            matrix(program, model)
        case _:
            print(__doc__)
            return 2
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except Wrong as wrong:
        print(wrong)
        sys.exit(1)
