"""tokenizer.json files of the structures that published models have, around any vocabulary."""

import base64
import json

LLAMA3 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|"
          r"\s+(?!\S)|\s+")
QWEN = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
NEMO = (r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|"
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|"
        r"\s*[\r\n]+|\s+(?!\S)|\s+")
SPACE = "\u2581"


def byte_level(regex):
    return {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": regex}


def split_then_bytes(pattern):
    return {"type": "Sequence", "pretokenizers": [
        {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}, byte_level(False)]}


DIGITS_THEN_BYTES = {"type": "Sequence",
                     "pretokenizers": [{"type": "Digits", "individual_digits": True}, byte_level(True)]}
LEGACY = {"type": "Sequence", "normalizers": [
    {"type": "Prepend", "prepend": SPACE},
    {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}]}


def metaspace(scheme, split=False):
    return {"type": "Metaspace", "replacement": SPACE, "prepend_scheme": scheme, "split": split}


def token(id, content, **flags):
    return {"id": id, "content": content, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
            "special": True, **flags}


def around(first, id):
    begin, text = {"SpecialToken": {"id": first, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}
    return {"type": "TemplateProcessing", "single": [begin, text], "pair": [begin, text],
            "special_tokens": {first: {"id": first, "ids": [id], "tokens": [first]}}}


def document(vocab, merges, added, normalizer=None, words=None, post=None, **model):
    settings = {"dropout": None, "unk_token": None, "continuing_subword_prefix": None, "end_of_word_suffix": None,
                "fuse_unk": False, "byte_fallback": False, "ignore_merges": False}
    return {"version": "1.0", "truncation": None, "padding": None, "added_tokens": added, "normalizer": normalizer,
            "pre_tokenizer": words, "post_processor": post, "decoder": None,
            "model": {"type": "BPE", **settings, **model, "vocab": vocab, "merges": merges}}


def byte_characters():
    """The character that stands for each byte."""
    visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = iter(range(0x100, 0x200))
    return {byte: chr(byte) if byte in visible else chr(next(others)) for byte in range(256)}


def from_ranks(ranks):
    """Vocabulary and merges of {bytes: rank}: a token is merged from the two that merging up to its rank leaves."""
    characters = byte_characters()

    def name(token):
        return "".join(characters[byte] for byte in token)

    merges = []
    for token, rank in sorted(ranks.items(), key=lambda item: item[1]):
        parts = [token[i:i + 1] for i in range(len(token))]
        while len(parts) > 2:
            best = min((ranks.get(a + b, rank), i) for i, (a, b) in enumerate(zip(parts, parts[1:])))
            if best[0] >= rank:
                break
            i = best[1]
            parts[i:i + 2] = [parts[i] + parts[i + 1]]
        if len(parts) == 2:
            merges.append([name(parts[0]), name(parts[1])])
    return {name(token): rank for token, rank in ranks.items()}, merges


def read_tiktoken(file):
    return from_ranks({base64.b64decode(token): int(rank)
                       for token, rank in (line.split() for line in file.read_text().splitlines() if line)})


def read_tekken(file):
    content = json.loads(file.read_text())
    first = content["config"]["default_num_special_tokens"]
    count = content["config"]["default_vocab_size"] - first
    vocab, merges = from_ranks({base64.b64decode(entry["token_bytes"]): entry["rank"]
                                for entry in content["vocab"][:count]})
    return {name: id + first for name, id in vocab.items()}, merges


def read_sentencepiece(file):
    """Vocabulary and merges of a SentencePiece BPE model, in the order of their scores."""
    import sentencepiece

    model = sentencepiece.SentencePieceProcessor(model_file=str(file))
    pieces = [model.id_to_piece(i) for i in range(model.get_piece_size())]
    vocab = {piece: i for i, piece in enumerate(pieces)}
    merges = []
    for i, piece in enumerate(pieces):
        if len(piece) < 2 or model.is_control(i) or model.is_byte(i) or model.is_unknown(i):
            continue
        for k in range(1, len(piece)):
            if piece[:k] in vocab and piece[k:] in vocab:
                merges.append((-model.get_score(i), vocab[piece[:k]], vocab[piece[k:]], [piece[:k], piece[k:]]))
    return vocab, [merge[3] for merge in sorted(merges, key=lambda merge: merge[:3])]
