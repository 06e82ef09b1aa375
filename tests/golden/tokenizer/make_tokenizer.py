"""Golden token ids, by Hugging Face's tokenizers.

    python3 make_tokenizer.py                         texts.json, bpe/ and the ids of bpe/ and of tiny-world, beside this file
    python3 make_tokenizer.py OUT LINES FOLDER...     OUT/NAME for each FOLDER/NAME of tokenizer files: links to them, and the
                                                      ids of the same texts and of the lines of the file LINES

Needs transformers 4 (tried with 4.46.3: the last major version with tokenizers in Python), sentencepiece and protobuf. Each
tokenizer exists twice there, in Python and in Rust: this program says where they differ and writes the ids of the one in Rust,
which is what transformers loads unless told otherwise. Names of special tokens in a text become their ids. tiny-world-inside.txt: with `legacy: false`, where what follows a special token gets no space in front;
tiny-world-no-prefix.txt: and with `add_prefix_space: false`, where the text gets none either.

golden.txt has a line for each text: the number of ids and an FNV-1a hash over the ids as little-endian 32-bit words.
"""

import json
import pathlib
import random
import struct
import sys
import unicodedata

HERE = pathlib.Path(__file__).resolve().parent
TINY_WORLD = HERE.parent.parent / "data" / "tiny-world"

TEXTS = [
    "", " ", "  ", "     ", "\n", "\n\n", "\t", "\r\n", " \n ", "a", " a", "a ", "  a  b  ",
    "Hello world", " Hello world", "Hello  world", "hello\nworld", "hello\tworld\n",
    "Question: What is 2+2?\nAnswer:", "\n\n = Robert Boulter = \n", "The red ball is in the box.",
    "Anna lives in the north. She is nine.", "1234567890", "3 + 4 = 7", "3.14159, -2e-10", "don't won't I'll",
    "it's we're I've I'm he'll she'd", "IT'S WE'RE I'VE I'M HE'LL SHE'D", "'s't're've'm'll'd", " 's 't 're", "''s '' 'S",
    "rock'n'roll", "'", "''", "'sss", "'re're", "a'b'c", "\u2019s it\u2019s",
    "ALL CAPS", "CamelCaseWord", "snake_case_word", "http://example.com/a?b=c&d=%20", "user@example.org", "#tag $5 100%",
    "🙂 é", "🙂🙂🙂", "👩‍👩‍👧‍👦 family", "🇩🇪🇫🇷", "日本語のテキスト", "中文，标点。", "한국어", "العربية", "עברית", "हिन्दी", "ไทย",
    "e\u0301 o\u0308", "Z\u0351\u036b\u0343\u036a", "\u0301", "ﬁ ﬂ ﬃ", "½ ² ™ №", "İıſß", "ǅ", "\u00a0nbsp\u00a0", "Ⅷ ⅷ ㊿ ١٢٣ १२३ 𝟗",
    "\u2003em space\u2003", "\u200bzero\u200bwidth", "\ufeffbom", "\u2028line\u2029para", "\u202ertl", "\ufffd", "\ufffe\uffff",
    "\U0010ffff", "\U00010000", "\u0000", "a\u0000b", "\u0000\u0000\u0000", "\u0001\u0002\u001f\u007f", "\u0080\u009f",
    "\u001c\u001d\u001e\u001f", "a\u001cb", "\u0085 \u0085a", "\u180e \u180ea", "\u1680a", "\u000b\u000c",
    "<s>", "</s>", "<unk>", "<s>hi</s>", "<0x41>", "<0x0A>", "[INST] x [/INST]", "<|endoftext|>", "a<pad>b", "<mask> ",
    "▁", "▁▁a", "a▁b", "▁ ▁", "Ġ", "ĠĠa Ċ", "Ġthe the",
    "x   y    z", "tab\t\ttab", "mixed \t \n end ", "\u3000\u3000full width", "................", "----====____",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", "((((([[[[[{{{{{", "\\n \\t \\\\", "\"quoted\" 'single' `tick`",
]
LONG = [["a", 10000], [" ", 5000], ["The ball rolls to the box. ", 3000], ["🙂", 2000], ["\n", 3000], ["ab c\u0301\u0000", 2000]]

SPECIAL = ["<s>[INST] Hello [/INST] Well met.</s><s>[INST] Bye [/INST] So long.</s>", "a </s> b", "a  </s>  b", "</s></s>", "</s> ", " </s>",
           "\n<s>\n", "<s>\u2581a", "<<s>>", "<s", "</s", "<unk>the<unk>", "x</s>\u00e9", "\U0001f642<s>\U0001f642", "<S>", "< s>", "don't</s>'s",
           "12</s>34", "<s>  two spaces"]

POOLS = [
    "abcdefghijklmnopqrstuvwxyz", "ABCDEFGHIJKLMNOPQRSTUVWXYZ", "0123456789", " ", "  \n\t", ".,;:!?-_()[]{}/\\|@#$%^&*+=<>~`\"",
    "'", "àéîõüßçñøåœæ", "αβγδεΩΨ", "абвгдЖЩ", "אבגד", "ابتث", "अआकख\u093f\u094d", "กขคง", "あいうアイウ", "漢字語文", "가나다라",
    "\u0300\u0301\u0308\u20dd", "🙂🎉🚀👍\u200d\ufe0f", "\u00a0\u2003\u3000\u2028\u0085", "\u200b\u200e\ufeff\u00ad", "¼½²³①Ⅳ٣৭",
    "\x00\x01\x1b\x1c\x1f\x7f\x80\x9f", "™©€→∑≠", "'s", "'ll", "n't", "\r\n",
]
WORDS = "the The of and to in is was for on that with as it by at from his an were are which this be had not don't I'm we'll".split()


def assigned(rng):
    """A code point of Unicode 14 or before, which every library knows."""
    while True:
        limit = rng.choice([0x250, 0x3000, 0x10000, 0x20000, 0x110000])
        c = chr(rng.randrange(limit))
        if unicodedata.category(c) not in ("Cn", "Cs", "Co"):
            return c


def make_texts():
    texts = [[text, 1] for text in TEXTS] + LONG
    lines = (TINY_WORLD / "test.txt").read_text().split(". ")
    rng = random.Random(1)
    for _ in range(60):
        texts.append([". ".join(rng.sample(lines, 2)), 1])
    for _ in range(300):  # words with anything between them
        texts.append(["".join(rng.choice(WORDS) + rng.choice([" ", "  ", "\n", ", ", ". ", "-", "\t", "' ", " '", "12"])
                              for _ in range(rng.randint(1, 8))), 1])
    for _ in range(400):  # mixtures of a few kinds
        pools = rng.sample(POOLS, rng.randint(1, 4))
        texts.append(["".join(rng.choice(rng.choice(pools)) for _ in range(rng.randint(1, 24))), 1])
    for _ in range(200):  # any character
        texts.append(["".join(assigned(rng) for _ in range(rng.randint(1, 8))), 1])
    return texts


def fnv1a(ids):
    h = 0xCBF29CE484222325
    for byte in b"".join(struct.pack("<i", i) for i in ids):
        h = ((h ^ byte) * 0x100000001B3) & ((1 << 64) - 1)
    return f"{h:016x}"


def load(folder, **keys):
    """(Python's, Rust's) tokenizer of a folder."""
    import transformers

    if (folder / "tokenizer.model").exists():
        keys = {"legacy": True, **keys}
        slow = transformers.LlamaTokenizer.from_pretrained(folder, **keys)
        fast = transformers.LlamaTokenizerFast.from_pretrained(folder, from_slow=True, **keys)
    else:
        slow = transformers.GPT2Tokenizer.from_pretrained(folder)
        fast = transformers.GPT2TokenizerFast.from_pretrained(folder)
    return slow, fast


def golden(folder, texts, out, **keys):
    slow, fast = load(folder, **keys)
    lines = []
    for text, repeat in texts:
        text *= repeat
        ids = slow.encode(text, add_special_tokens=False)
        other = fast.encode(text, add_special_tokens=False)
        if ids != other:
            print(f"{folder.name} {keys}: {text!r}: {ids} in Python, {other} in Rust")
        lines.append(f"{len(other)} {fnv1a(other)}\n")
    out.write_text("".join(lines))
    print(f"{out.name}: {len(lines)} texts")


def golden_of_file(file, texts, out):
    """Of a tokenizer.json alone, whose special tokens are those that it lists."""
    import tokenizers

    tokenizer = tokenizers.Tokenizer.from_file(str(file))
    ids = [tokenizer.encode(text * repeat, add_special_tokens=False).ids for text, repeat in texts]
    out.write_text("".join(f"{len(each)} {fnv1a(each)}\n" for each in ids))


def train_bpe(folder, texts):
    """A small vocabulary of our own: tiny-world's stories, and the texts above for merges of longer characters."""
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers, processors, trainers

    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=700, special_tokens=["<s>", "<pad>", "</s>", "<unk>"], show_progress=False,
                                  initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    stories = (TINY_WORLD / "test.txt").read_text()[:100_000]
    tokenizer.train_from_iterator([stories] + [text for text, _ in texts] * 3, trainer)
    folder.mkdir(exist_ok=True)
    tokenizer.model.save(str(folder))
    (folder / "tokenizer_config.json").write_text(json.dumps({
        "add_bos_token": True, "add_prefix_space": False, "bos_token": "</s>", "eos_token": "</s>", "pad_token": "<pad>",
        "unk_token": "<unk>", "tokenizer_class": "GPT2Tokenizer"}, indent=1) + "\n")
    # The same in one file, as Hugging Face's library for it writes it.
    tokenizer.post_processor = processors.TemplateProcessing(single="</s> $A", special_tokens=[("</s>", 2)])
    tokenizer.save(str(folder / "tokenizer.json"), pretty=False)


def main():
    if len(sys.argv) > 1:
        out = pathlib.Path(sys.argv[1])
        lines = [[line, 1] for line in pathlib.Path(sys.argv[2]).read_text().split("\n")]
        texts = json.loads((HERE / "texts.json").read_text()) + lines
        out.mkdir(parents=True, exist_ok=True)
        (out / "texts.json").write_text(json.dumps(texts))
        for folder in map(pathlib.Path, sys.argv[3:]):
            target = out / folder.name
            target.mkdir(exist_ok=True)
            for file in folder.iterdir():
                (target / file.name).symlink_to(file.resolve())
            golden(target, texts, target / "golden.txt")
        return
    plain = make_texts()
    texts = plain + [[text, 1] for text in SPECIAL]
    rows = ",\n".join(json.dumps(text, separators=(",", ":")) for text in texts)
    (HERE / "texts.json").write_text(f"[\n{rows}\n]\n")
    train_bpe(HERE / "bpe", plain)
    json_file = HERE / "bpe" / "tokenizer.json"
    held = json_file.read_bytes()
    json_file.unlink()  # transformers would read it, and not the other two
    golden(HERE / "bpe", texts, HERE / "bpe" / "golden.txt")
    json_file.write_bytes(held)
    golden_of_file(json_file, texts, HERE / "bpe" / "golden-json.txt")
    golden(TINY_WORLD, texts, HERE / "tiny-world.txt")
    golden(TINY_WORLD, texts, HERE / "tiny-world-inside.txt", legacy=False)
    golden(TINY_WORLD, texts, HERE / "tiny-world-no-prefix.txt", legacy=False, add_prefix_space=False)


if __name__ == "__main__":
    main()
