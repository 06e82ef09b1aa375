"""Writes the fuzzers' first inputs, tests/fuzz/corpus/READER/*: make_corpus.py (Python 3, nothing else).

Small, whole files of every kind, and by their names those that a reader once took too long or too much memory for. What a
fuzzer finds is added beside them by hand.
"""
import io
import json
import pathlib
import struct
import zipfile

HERE = pathlib.Path(__file__).resolve().parent
GOLDEN = HERE.parent / "golden"


def put(reader, name, content):
    folder = HERE / "corpus" / reader
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)


def safetensors(header, data=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def tensor(dtype, shape, begin, end):
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def gguf(keys, tensors, data=b"", version=3, counts=None):
    """keys: (name, type, bytes); tensors: (name, sizes with the row's length first, type, offset)."""
    def text(value):
        return struct.pack("<Q", len(value)) + value.encode()
    header = b"GGUF" + struct.pack("<IQQ", version, *(counts or (len(tensors), len(keys))))
    for name, kind, value in keys:
        header += text(name) + struct.pack("<I", kind) + value
    for name, sizes, kind, offset in tensors:
        header += text(name) + struct.pack(f"<I{len(sizes)}QIQ", len(sizes), *sizes, kind, offset)
    return header + bytes(-len(header) % 32) + data


def string(text):
    return b"X" + struct.pack("<I", len(text)) + text.encode()


def pickled_tensors(names, key="0", dims=(2,), elements=4):
    """The pickle of a dictionary in which all names share one tensor."""
    shape = b"(" + b"".join(b"K" + bytes([n]) for n in dims) + b"t"
    made = (b"ctorch._utils\n_rebuild_tensor_v2\n((" + string("storage") + b"ctorch\nFloatStorage\n" + string(key) +
            string("cpu") + b"K" + bytes([elements]) + b"tQK\0" + shape + shape + b"\x89ccollections\nOrderedDict\n)RtRq\1")
    pairs = b"".join(string(name) + b"h\1" for name in names)
    return b"\x80\2" + made + b"0}(" + pairs + b"u."


def archive(pickle, storages):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        def add(name, content):
            file.writestr(zipfile.ZipInfo("a/" + name), content)  # always the same time stamp
        add("data.pkl", pickle)
        add("byteorder", "little")
        for key, content in storages.items():
            add("data/" + key, content)
    return buffer.getvalue()


def varint(value):
    out = b""
    while value > 0x7F:
        out, value = out + bytes([value & 0x7F | 0x80]), value >> 7
    return out + bytes([value])


def field(number, content):
    if isinstance(content, int):
        return varint(number << 3) + varint(content)
    return varint(number << 3 | 2) + varint(len(content)) + content


def sentencepiece():
    pieces = [("<unk>", 2), ("<s>", 3), ("</s>", 3)] + [(f"<0x{b:02X}>", 6) for b in range(256)]
    pieces += [(c, 1) for c in "\u2581abcdefgh"] + [("ab", 1), ("\u2581ab", 1)]
    body = b"".join(field(1, field(1, piece.encode()) + b"\x15" + struct.pack("<f", -i) + field(3, kind))
                    for i, (piece, kind) in enumerate(pieces))
    trainer = field(3, 2) + field(35, 1)  # BPE, byte fallback
    normalizer = field(1, b"identity") + field(3, 1) + field(4, 0) + field(5, 1)
    return body + field(2, trainer) + field(3, normalizer)


def main():
    put("safetensors", "empty", b"")
    put("safetensors", "no-tensors", safetensors({}))
    put("safetensors", "two", safetensors({"a": tensor("F16", [2, 2], 0, 8), "b": tensor("BF16", [1], 8, 10),
                                           "__metadata__": {"format": "pt"}}, bytes(10)))
    put("safetensors", "types", safetensors({"a": tensor("F8_E4M3", [3], 0, 3), "b": tensor("F4", [2], 3, 4),
                                             "c": tensor("I64", [], 4, 12), "d": tensor("F32", [0, 7], 12, 12)}, bytes(12)))
    put("safetensors", "overlap", safetensors({"a": tensor("U8", [2], 0, 2), "b": tensor("U8", [2], 1, 3)}, bytes(3)))
    put("safetensors", "key-twice", safetensors(b'{"a":{"dtype":"U8","dtype":"U8"}}'))
    put("safetensors", "nested", safetensors(b'{"a":' + b"[" * 100))
    put("safetensors", "huge-number", safetensors(b'{"a":{"dtype":"U8","shape":[1e999],"data_offsets":[0,1]}}', bytes(1)))
    put("safetensors", "many-names", safetensors({f"t{i}": tensor("U8", [0], 0, 0) for i in range(2000)}))

    text = struct.pack("<Q", 5) + b"llama"
    keys = [("general.architecture", 8, text), ("general.alignment", 4, struct.pack("<I", 32)), ("flag", 7, b"\1"),
            ("scores", 9, struct.pack("<IQff", 6, 2, 0.5, -1)), ("tokens", 9, struct.pack("<IQ", 8, 2) + text + text)]
    put("gguf", "empty", b"")
    put("gguf", "no-tensors", gguf(keys, []))
    put("gguf", "two", gguf(keys, [("norm", [3], 0, 0), ("w", [64, 2], 2, 32)], bytes(128)))
    put("gguf", "types", gguf([], [("a", [32], 8, 0), ("b", [256], 12, 64), ("c", [2], 30, 224), ("d", [7], 99, 0)], bytes(256)))
    put("gguf", "name-twice", gguf([], [("a", [1], 0, 0), ("a", [1], 0, 32)], bytes(64)))
    put("gguf", "no-rows", gguf([], [("a", [32, 0], 2, 0), ("b", [0], 0, 0)]))
    put("gguf", "huge-sizes", gguf([], [("a", [2**32, 2**32, 2**32], 0, 0)], bytes(64)))
    put("gguf", "size-wraps", gguf([], [("a", [2**16, 2**16, 2**16, 2**14], 0, 0)], bytes(256)))
    put("gguf", "many-sizes", gguf([], [("a", [1, 1, 1, 1, 1], 0, 0)], bytes(32)))
    put("gguf", "many-keys", gguf([], [], counts=(0, 2**63)))
    put("gguf", "many-tensors", gguf([], [], counts=(2**63, 0)))
    put("gguf", "long-list", gguf([("a", 9, struct.pack("<IQ", 8, 2**63))], []))
    put("gguf", "list-of-lists", gguf([("a", 9, struct.pack("<IQ", 9, 1) + struct.pack("<IQ", 9, 1) * 100)], []))
    put("gguf", "long-name", gguf([("a", 8, struct.pack("<Q", 2**64 - 1))], []))
    put("gguf", "far-data", gguf([], [("a", [8], 0, 2**63)], bytes(32)))
    put("gguf", "great-alignment", gguf([("general.alignment", 4, struct.pack("<I", 2**32 - 8))], [("a", [1], 0, 0)], bytes(32)))

    plain = pickled_tensors(["a", "b"])
    put("pickle", "two", plain)
    put("pickle", "shared-long-key", pickled_tensors([f"t{i}" for i in range(1000)], key="k" * 4000))
    put("pickle", "shared-many-dimensions", pickled_tensors([f"t{i}" for i in range(1000)], dims=[1] * 60))
    put("pickle", "calls-a-function", b"\x80\2cos\nsystem\n" + string("true") + b"\x85R.")
    put("pickle", "in-a-circle", b"\x80\2}q\0" + string("a") + b"h\0s.")
    put("pickle", "protocol-4", b"\x80\4\x95\x05\0\0\0\0\0\0\0}\x94\x8c\1aNs.")

    put("pytorch_bin", "two", archive(plain, {"0": bytes(16)}))
    put("pytorch_bin", "no-storage", archive(plain, {}))
    put("pytorch_bin", "not-a-zip", b"PK\3\4" + bytes(40))
    put("pytorch_bin", "golden", (GOLDEN / "bin/tensors.bin").read_bytes())

    llama = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 64, "intermediate_size": 128,
             "num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": 2, "vocab_size": 100,
             "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "rope_scaling": None, "torch_dtype": "float16",
             "max_position_embeddings": 128, "bos_token_id": 1, "eos_token_id": [2, 3], "tie_word_embeddings": False}
    put("config", "llama", json.dumps(llama))
    put("config", "mistral", json.dumps(llama | {"architectures": ["MistralForCausalLM"], "model_type": "mistral",
                                                 "sliding_window": 32, "head_dim": 16}))
    put("config", "opt", json.dumps({"model_type": "opt", "hidden_size": 64, "ffn_dim": 128, "num_attention_heads": 4,
                                     "num_hidden_layers": 2, "vocab_size": 100, "word_embed_proj_dim": 32,
                                     "do_layer_norm_before": False, "max_position_embeddings": 128}))
    put("config", "not-an-object", "[1, 2]")

    put("index", "two", json.dumps({"metadata": {"total_size": 6},
                                    "weight_map": {"a": "part.safetensors", "b": "part.safetensors"}}))
    put("index", "missing-tensor", json.dumps({"weight_map": {"c": "part.safetensors"}}))
    put("index", "another-folder", json.dumps({"weight_map": {"a": "../part.safetensors"}}))
    put("index", "missing-file", json.dumps({"weight_map": {"a": "other.bin"}}))

    bpe = GOLDEN / "tokenizer/bpe"
    put("tokenizers", "sentencepiece", b"m" + sentencepiece())
    put("tokenizers", "json", b"j" + json.dumps(json.loads((bpe / "tokenizer.json").read_text()), ensure_ascii=False).encode())
    characters = json.loads((GOLDEN / "tokenizer/structures/characters.json").read_text())
    put("tokenizers", "json-characters", b"j" + json.dumps(characters, ensure_ascii=False).encode())
    steps = {"normalizer": {"type": "Sequence", "normalizers": [
        {"type": "NFKC"}, {"type": "Prepend", "prepend": "\u2581"}, {"type": "Replace", "pattern": {"Regex": " +"}, "content": "\u2581"}]},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": "(?i:'s|'t)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}|\\s+(?!\\S)|\\s+"}, "behavior": "MergedWithNext", "invert": True},
            {"type": "Punctuation", "behavior": "Contiguous"}, {"type": "Digits", "individual_digits": True}, {"type": "Whitespace"},
            {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": "first", "split": True}]}}
    small = {"a": 0, "b": 1, "ab": 2, "\u2581": 3, "<unk>": 4, "<0x41>": 5}
    model = {"type": "BPE", "unk_token": "<unk>", "fuse_unk": True, "byte_fallback": True, "ignore_merges": True, "vocab": small, "merges": [["a", "b"]]}
    added = [{"id": 9, "content": "On ce", "single_word": True, "lstrip": True, "rstrip": True, "normalized": True, "special": False}]
    put("tokenizers", "json-steps", b"j" + json.dumps(steps | {"added_tokens": added, "model": model}, ensure_ascii=False).encode())
    backtracks = {"type": "Split", "pattern": {"Regex": "(a|aa|\\w)+$|(.*)*x"}, "behavior": "Isolated"}
    put("tokenizers", "json-backtracks", b"j" + json.dumps({"pre_tokenizer": backtracks, "model": model}).encode())
    put("tokenizers", "vocab-and-merges", b"v" + (bpe / "vocab.json").read_bytes() + b"\0" + (bpe / "merges.txt").read_bytes())
    for case in json.loads((GOLDEN / "chat/cases.json").read_text())["cases"]:
        if case["name"] in ("llama 3 with dates", "thoughts", "white space", "methods"):
            put("tokenizers", "template-" + case["name"].replace(" ", "-"), b"t" + case["template"].encode())
    put("tokenizers", "template-deep", b"t{{" + b"-(" * 900 + b"1")
    put("tokenizers", "config", b"c" + (bpe / "tokenizer_config.json").read_bytes() + b'\0{"<pad>": 600}')

    put("yaml", "all-keys", """model: m
run: r
calibration: {text: t, samples: 8, sequence_length: 64, seed: 1, shards: 4, drawing: packed}
recipes:
  - {method: rtn, bits: 3, group_size: 64, symmetric: true}
  - {method: gptq, name: mine, act_order: static, damping: 0.05}
  - {method: awq, scale_search: false}
  - {method: signround, preset: best, bits: 2, iterations: 1}
mesh: {pipeline: 2, data: 2}
threads: 3
memory: {activations_gib: 1.5, scratch: /tmp}
checkpoint: {interruption_hours: 2}
limits: {stall_seconds: 60, silence_seconds: 20, minutes: 10}
export: {formats: [dense, gptq], dtype: float16, shard_gib: 0.5}
evaluate: {original: false, perplexity: [{name: n, text: t, window: 64, limit: 2, rows: true}]}
""")
    put("yaml", "nested", "recipes: " + "[" * 200)
    put("yaml", "anchors", "a: &x [1]\nb: *x\n")
    put("yaml", "text", 'model: "a\\nb\\u00e9"\nrun: \'it\'\'s\'\n')

    head = "roundhouse-record 2\nkey record\nidentity none\nbytes 4\nxxh3-128 "
    put("records", "no-seal", b"f")
    put("records", "wrong-hash", b"f" + (head + "0" * 32 + "\n").encode().ljust(512, b"\0") + b"abcd")

    a = "ca978112ca1bbdcafac231b39a23dc4da786eff8147c4e72b9807785afee48bb"
    put("sums", "one", f"{a}  a\n")
    put("sums", "binary", f"{a} *a\n{a}  b\n")
    put("sums", "another-folder", f"{a}  ../a\n")
    put("sums", "not-a-line", "a\n")
    put("sums", "long-name", f"{a}  {'b' * 300}\n")

    # First a byte that chooses the task and the kind of file (tasks.cpp).
    put("tasks", "choices", b"\x0c" + b'{"context": "a", "choices": ["b", "c"], "gold": 1}\n')
    put("tasks", "greedy", b"\x0d" + b'{"context": "a", "choices": ["b"], "gold": 0}\n')
    put("tasks", "mmlu-table", b"\x1c" + b'"a ""b""\nc",1,2,3,4,B\nq,1,2,3,4,E\n')
    put("tasks", "truthfulqa", b"\x13" + b'[{"question": "q", "mc1_targets": {"a": 1, "b": 0}}]')
    put("tasks", "rte-table", b"\x32" + b"index\tsentence1\tsentence2\tlabel\n0\ta\tb\tentailment\n")
    put("tasks", "pages", b"\x43" + b" = a = \n b @-@ c \n")
    put("tasks", "gold-too-large", b"\x0c" + b'{"context": "a", "choices": ["b", "c"], "gold": 18446744073709551615}\n')
    put("tasks", "many-keys", b"\x0c" + b"{" + b", ".join(b'"%d": 0' % i for i in range(2000)) + b"}")
    document = b'\0{"a": "x y", "b": ["c", "d"], "g": 1, "o": {"k": "v"}}\n'
    def template(name, yaml):
        put("tasks", "template-" + name, b"\xff" + yaml + document)
    template("whole", b"""include: choices
filters: {clean: 'trim | replace("x", "y")'}
let: {both: "{{[a, a]}}", more: "{{both | join(' ')}}{{a | clean}}"}
context: "{{more | before('x')}}{{o | keys | only}}{{o.k | default(b.0)}}"
choices: "{{b | capitalize}}"
gold: "{{g}}"
labels: {"0": 0, "1": 1}
""")
    template("doubling", b"let:\n  n0: '{{a}}'\n" + b"".join(b"  n%d: '{{n%d}}{{n%d}}'\n" % (i + 1, i, i) for i in range(90))
             + b"context: '{{n90}}'\nchoices: ['a', 'b']\ngold: '0'\n")
    template("growing", b"context: '{{a" + b"".join(b' | replace("x", "xxxxxxxxxxxxxxxx")' for _ in range(40)) + b"}}'\nchoices: ['a', 'b']\ngold: '0'\n")
    template("deep", b"context: '{{" + b"[" * 20000 + b"'\nchoices: ['a', 'b']\ngold: '0'\n")
    template("itself", b"let: {x: '{{y}}', y: '{{x}}'}\ncontext: '{{y}}'\nchoices: ['a', 'b']\ngold: '0'\n")
    template("page", b"page: '{{a}}'\ncounted: '{{o}}'\nmetric: perplexity\n")


if __name__ == "__main__":
    main()
