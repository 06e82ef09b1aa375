"""structures/: small tokenizer.json files of the structures that published models have, and their ids of texts.json, by Hugging
Face's tokenizers (tried with 0.23.3):

    python3 make_structures.py

structures.json has for each a file to begin with, ../bpe/tokenizer.json or characters.json, and what is changed in it (JSON merge
patch, RFC 7396). NAME.txt has a line for each text: the ids' FNV-1a hash, its low 32 bits.
"""

import json

import structures as s
from make_tokenizer import HERE, TINY_WORLD, fnv1a

OUT = HERE / "structures"
ADDED = [("<|a|>", {}), ("<|a|><|", {}), ("the", {"special": False, "single_word": True}), ("north", {"special": False, "normalized": True}),
         (" box", {"special": False, "normalized": True, "lstrip": True}), ("[INST]", {"lstrip": True, "rstrip": True}),
         ("\u00e9", {"special": False, "normalized": True}), ("it", {"special": False, "single_word": True, "normalized": True})]


def merged(target, patch):
    if not isinstance(patch, dict):
        return patch
    result = dict(target) if isinstance(target, dict) else {}
    for key, value in patch.items():
        if value is None:
            result.pop(key, None)
        else:
            result[key] = merged(result.get(key), value)
    return result


def train_characters(texts):
    """A small vocabulary of characters with byte fallback, spaces written as SentencePiece does."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

    special = ["<unk>", "<s>", "</s>"] + [f"<0x{byte:02X}>" for byte in range(256)]
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Replace(" ", s.SPACE)
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(s.SPACE, prepend_scheme="always", split=True)
    trainer = trainers.BpeTrainer(vocab_size=700, special_tokens=special, limit_alphabet=120, show_progress=False)
    tokenizer.train_from_iterator([(TINY_WORLD / "test.txt").read_text()[:100_000]] + [text for text, repeat in texts if repeat == 1], trainer)
    model = json.loads(tokenizer.to_str())["model"]
    return s.document(model["vocab"], model["merges"], [s.token(i, name) for i, name in enumerate(special[:3])], s.LEGACY, None,
                      s.around("<s>", 1), unk_token="<unk>", fuse_unk=True, byte_fallback=True)


def main():
    import tokenizers

    texts = json.loads((HERE / "texts.json").read_text())
    OUT.mkdir(exist_ok=True)
    characters = train_characters(texts)
    (OUT / "characters.json").write_text(json.dumps(characters, ensure_ascii=False))
    bytes_file = json.loads((HERE / "bpe/tokenizer.json").read_text())
    used = {part for merge in bytes_file["model"]["merges"] for part in (merge if isinstance(merge, list) else merge.split(" "))}
    unused = [c for c in s.byte_characters().values() if c not in used and c in bytes_file["model"]["vocab"]][-21:]

    def added(content):
        """The library takes the ids that the vocabulary has, and the next ones for other tokens."""
        vocab = content["model"]["vocab"]
        others = iter(range(len(vocab), len(vocab) + len(ADDED)))
        return [s.token(vocab[name] if name in vocab else next(others), name, **flags) for name, flags in ADDED]

    smollm2 = {"pre_tokenizer": s.DIGITS_THEN_BYTES, "model": {"vocab": dict.fromkeys(unused)}}
    falcon = {"type": "Sequence", "pretokenizers": [{"type": "Punctuation", "behavior": "Contiguous"}, s.byte_level(True),
                                                    {"type": "Digits", "individual_digits": False}]}
    whitespace = {"type": "Sequence", "pretokenizers": [{"type": "Whitespace"}, {"type": "Split", "pattern": {"String": "re"},
                                                                                 "behavior": "MergedWithPrevious", "invert": False}]}
    recipes = {
        "llama3": ("bytes", {"pre_tokenizer": s.split_then_bytes(s.LLAMA3), "model": {"ignore_merges": True}}),
        "qwen": ("bytes", {"normalizer": {"type": "NFC"}, "pre_tokenizer": s.split_then_bytes(s.QWEN), "added_tokens": added(bytes_file)}),
        "nemo": ("bytes", {"pre_tokenizer": s.split_then_bytes(s.NEMO)}),
        "smollm2": ("bytes", smollm2),
        "falcon": ("bytes", {"pre_tokenizer": falcon, "added_tokens": added(bytes_file)}),
        "llama": ("characters", {}),
        "mistral-v3": ("characters", {"normalizer": None, "pre_tokenizer": s.metaspace("first")}),
        "phi3": ("characters", {"added_tokens": added(characters)}),
        "gemma": ("characters", {"normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": s.SPACE},
                                 "pre_tokenizer": {"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious",
                                                   "invert": False}}),
        "words": ("characters", {"normalizer": {"type": "NFKC"}, "pre_tokenizer": whitespace, "model": {"byte_fallback": False}}),
        "metaspace": ("characters", {"normalizer": None, "pre_tokenizer": s.metaspace("always", True), "model": {"fuse_unk": False, "byte_fallback": False}}),
    }
    (OUT / "structures.json").write_text(json.dumps(recipes, indent=1) + "\n")
    for name, (base, patch) in recipes.items():
        content = merged(bytes_file if base == "bytes" else characters, patch)
        # The order of ids is the order in which the library wants added tokens; keys that are null may be left out.
        tokenizer = tokenizers.Tokenizer.from_str(json.dumps(content))
        ids = [tokenizer.encode(text * repeat, add_special_tokens=False).ids for text, repeat in texts]
        (OUT / f"{name}.txt").write_text("".join(fnv1a(each)[8:] + "\n" for each in ids))
        print(f"{name}: {len(ids)} texts, {sum(map(len, ids))} ids")


if __name__ == "__main__":
    main()
