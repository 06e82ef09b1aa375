"""Golden token ids of tiny-world's tokenizer, by the sentencepiece package of PyPI.

    python3 make_tokenizer.py         writes tokenizer.json beside this file

"text" is repeated "repeat" times. Every result has its count and an FNV-1a hash over the ids as little-endian 32-bit
words; short ones are listed as well.
"""

import json
import pathlib
import struct

import sentencepiece

HERE = pathlib.Path(__file__).resolve().parent
MODEL = HERE.parent / "data" / "tiny-world" / "tokenizer.model"
LONGEST_LIST = 200

TEXTS = [
    "", " ", "  ", "     ", "\n", "\n\n", "\t", "\r\n", " \n ", "a", " a", "a ", "  a  b  ",
    "Hello world", " Hello world", "Hello  world", "hello\nworld", "hello\tworld\n",
    "Question: What is 2+2?\nAnswer:", "\n\n = Robert Boulter = \n", "The red ball is in the box.",
    "Anna lives in the north. She is nine.", "1234567890", "3 + 4 = 7", "3.14159, -2e-10", "don't won't I'll",
    "ALL CAPS", "CamelCaseWord", "snake_case_word", "http://example.com/a?b=c&d=%20",
    "🙂 é", "🙂🙂🙂", "👩‍👩‍👧‍👦 family", "🇩🇪🇫🇷", "日本語のテキスト", "中文，标点。", "한국어", "العربية", "עברית", "हिन्दी", "ไทย",
    "e\u0301 o\u0308", "Z\u0351\u036b\u0343\u036a", "\u0301", "ﬁ ﬂ ﬃ", "½ ² ™ №", "İıſß", "ǅ", "\u00a0nbsp\u00a0",
    "\u2003em space\u2003", "\u200bzero\u200bwidth", "\ufeffbom", "\u2028line\u2029para", "\u202ertl", "\ufffd", "\ufffe\uffff",
    "\U0010ffff", "\U00010000", "\u0000", "a\u0000b", "\u0000\u0000\u0000", "\u0001\u0002\u001f\u007f", "\u0080\u009f",
    "<s>", "</s>", "<unk>", "<s>hi</s>", "<0x41>", "<0x0A>", "[INST] x [/INST]", "▁", "▁▁a", "a▁b", "▁ ▁",
    "x   y    z", "tab\t\ttab", "mixed \t \n end ", "\u3000\u3000full width", "................", "----====____",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", "((((([[[[[{{{{{", "\\n \\t \\\\", "\"quoted\" 'single' `tick`",
]
LONG = [("a", 10000), (" ", 5000), ("The ball rolls to the box. ", 3000), ("🙂", 2000), ("\n", 3000), ("ab c\u0301\u0000", 2000)]


def fnv1a(ids):
    h = 0xCBF29CE484222325
    for byte in b"".join(struct.pack("<i", i) for i in ids):
        h = ((h ^ byte) * 0x100000001B3) & ((1 << 64) - 1)
    return f"{h:016x}"


def main():
    processor = sentencepiece.SentencePieceProcessor(model_file=str(MODEL))
    cases = []
    for text, repeat in [(text, 1) for text in TEXTS] + LONG:
        ids = processor.encode(text * repeat)
        case = {"text": text, "repeat": repeat, "count": len(ids), "fnv1a": fnv1a(ids)}
        if len(ids) <= LONGEST_LIST:
            case["ids"] = ids
        cases.append(case)
    lines = ",\n".join(json.dumps(case, separators=(",", ":")) for case in cases)
    (HERE / "tokenizer.json").write_text(f"[\n{lines}\n]\n")
    print(f"{len(cases)} texts, sentencepiece {sentencepiece.__version__}")


if __name__ == "__main__":
    main()
