"""Ids of tokenizers of published sizes, ours beside those of Hugging Face's tokenizers, line by line.

    compare_tokenizers.py PROGRAM OUT TEXT KIND=FILE[,FILE]... [--lines N]

PROGRAM is tokenizer_bench, TEXT what it is timed on (plain English; its lines are compared, too), OUT a folder for the files
made. KIND and the files its vocabulary comes from:

    llama3=tokenizer.model   (ranks of tiktoken)      qwen=qwen.tiktoken               nemo=tekken_240911.json
    llama, mistral-v1, mistral-v3, phi3=tokenizer.model (SentencePiece)                gpt2, opt=vocab.json,merges.txt
    directory=DIRECTORY      (its tokenizer.json)

Needs tokenizers and, for SentencePiece's models, sentencepiece. The lines are words, code, numbers, emoji, white space, scripts and
added tokens, mixed at random, and what was broken UTF-8 before it was replaced by U+FFFD.
"""

import json
import pathlib
import random
import subprocess
import sys

import structures as s
from make_tokenizer import POOLS, TEXTS, WORDS, assigned

CODE = ["def f(x):\n", "    return x**2 # sq", "for (int i = 0; i < n; ++i) {", "}", "\t\tif (a && b)", "<div class='x'>", "=> {", "//", "/*",
        "#include <vector>", "https://a.b/c?d=e&f=%20", "self.x_y[0]", "0x1F", "1e-5", "$HOME", "::", "...", "!!", "\\n", "\"s\"", "CamelCase",
        "snake_case", "HTTPServer", "i18n"]


def make_lines(count, added, text):
    rng = random.Random(7)
    lines = [line for line in TEXTS if "\n" not in line]
    english = [line for line in text.split("\n") if line]
    while len(lines) < count:
        kind = rng.randrange(7)
        if kind == 0:
            line = rng.choice(english)[:400]
        elif kind == 1:
            pools = rng.sample(POOLS, rng.randint(1, 4))
            line = "".join(rng.choice(rng.choice(pools)) for _ in range(rng.randint(1, 40)))
        elif kind == 2:
            line = "".join(assigned(rng) for _ in range(rng.randint(1, 20)))
        elif kind == 3:
            line = "".join(rng.choice(CODE) + rng.choice(["", " ", "  ", "\t", ";"]) for _ in range(rng.randint(1, 10)))
        elif kind == 4:
            line = "".join(rng.choice(WORDS) + rng.choice([" ", "  ", ", ", ". ", "-", "' ", " '", "12", "\u2019s ", "\u3000", "\r"])
                           for _ in range(rng.randint(1, 20)))
        elif kind == 5:
            line = "".join(rng.choice([rng.choice(added), rng.choice(WORDS), " ", "  ", "\u00e9", "1", "<", "\t"]) for _ in range(rng.randint(1, 12)))
        else:
            whole = "".join(rng.choice(rng.choice(POOLS)) for _ in range(rng.randint(2, 30))).encode()
            cut = rng.randrange(len(whole))
            line = (whole[:cut] + whole[cut + 1:]).decode(errors="replace")
        lines.append(line.replace("\n", " "))
    return lines


def build(kind, files):
    token = s.token
    if kind == "directory":
        return json.loads((files[0] / "tokenizer.json").read_text())
    if kind in ("llama3", "qwen", "nemo"):
        vocab, merges = (s.read_tekken if kind == "nemo" else s.read_tiktoken)(files[0])
        n = max(vocab.values()) + 1
        if kind == "llama3":
            names = ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
            return s.document(vocab, merges, [token(n + i, name) for i, name in enumerate(names)], None, s.split_then_bytes(s.LLAMA3),
                              s.around(names[0], n), ignore_merges=True)
        if kind == "qwen":
            added = [token(n, "<|endoftext|>"), token(n + 1, "<|im_start|>"), token(n + 2, "<|im_end|>"),
                     token(n + 3, "<tool_call>", special=False), token(n + 4, "<think>", special=False)]
            return s.document(vocab, merges, added, {"type": "NFC"}, s.split_then_bytes(s.QWEN))
        names = ["<unk>", "<s>", "</s>", "[INST]", "[/INST]"]
        vocab.update({name: i for i, name in enumerate(names)})
        return s.document(vocab, merges, [token(i, name) for i, name in enumerate(names)], None, s.split_then_bytes(s.NEMO),
                          s.around("<s>", 1), ignore_merges=True)
    if kind in ("gpt2", "opt"):
        vocab = json.loads(files[0].read_text())
        merges = [line for line in files[1].read_text().split("\n") if line and not line.startswith("#version")]
        name = "<|endoftext|>" if kind == "gpt2" else "</s>"
        return s.document(vocab, merges, [token(vocab[name], name, normalized=kind == "gpt2")], None, s.byte_level(True))
    vocab, merges = s.read_sentencepiece(files[0])
    added = [token(i, name) for i, name in enumerate(["<unk>", "<s>", "</s>"])]
    post, bpe = s.around("<s>", 1), {"unk_token": "<unk>", "fuse_unk": True, "byte_fallback": True}
    if kind == "llama":
        return s.document(vocab, merges, added, s.LEGACY, None, post, **bpe)
    if kind == "phi3":
        n = len(vocab)
        added[2]["rstrip"] = True
        added += [token(n + i, name, rstrip=i > 0) for i, name in enumerate(["<|endoftext|>", "<|assistant|>", "<|user|>", "<|end|>"])]
        return s.document(vocab, merges, added, s.LEGACY, None, post, **bpe)
    return s.document(vocab, merges, added, None, s.metaspace("always" if kind == "mistral-v1" else "first"), post, **bpe)


def main():
    import tokenizers

    arguments = sys.argv[1:]
    count = int(arguments.pop(arguments.index("--lines") + 1)) if "--lines" in arguments else 100_000
    program, out, text, *kinds = [each for each in arguments if each != "--lines"]
    out, text = pathlib.Path(out), pathlib.Path(text)
    failed = False
    for each in kinds:
        kind, files = each.split("=")
        folder = out / kind
        folder.mkdir(parents=True, exist_ok=True)
        content = build(kind, [pathlib.Path(file) for file in files.split(",")])
        (folder / "tokenizer.json").write_text(json.dumps(content, ensure_ascii=False))
        names = [added["content"] for added in content["added_tokens"]]
        lines = make_lines(count, names, text.read_text())
        (folder / "lines.txt").write_text("\n".join(lines) + "\n", newline="")
        reference = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
        said = subprocess.run([program, folder, folder / "lines.txt", "--ids", folder / "ids.txt"], check=True, capture_output=True, text=True).stdout
        speed = subprocess.run([program, folder, text], check=True, capture_output=True, text=True).stdout.split("\n")[-2]
        ours = (folder / "ids.txt").read_text().split("\n")
        differences = []
        for begin in range(0, len(lines), 2000):
            part = lines[begin:begin + 2000]
            for i, encoding in enumerate(reference.encode_batch(part)):
                theirs = "".join(f"{id} " for id in encoding.ids)
                if theirs != ours[begin + i]:
                    differences.append((part[i], theirs, ours[begin + i]))
        mixed = said.split("\n")[-2]
        print(f"{kind}: {len(lines)} lines, {len(differences)} differences; {speed}; the lines: {mixed}", flush=True)
        for line, theirs, own in differences[:5]:
            print(f"  {line!r}\n    tokenizers {theirs}\n    ours       {own}")
        failed = failed or bool(differences)
    sys.exit(failed)


if __name__ == "__main__":
    main()
