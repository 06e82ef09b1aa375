#!/usr/bin/env python3
"""Compares what tasks ask of a model with lm-evaluation-harness: every prompt, every continuation, every split into tokens.

    pip install lm-eval sentencepiece tokenizers transformers
    compare_tasks.py --program build/bin/print_requests --data TASK_DATA --tokenizer DIR ... [--limit 50] [--model tests/data/tiny-world]

DIR has a tokenizer.model (SentencePiece), vocab.json and merges.txt (byte-level BPE), or is a model's with a tokenizer.json. The harness
builds its requests from the same files, converted here to the fields of Hugging Face's data sets, and splits them by its own code.
"""
import argparse
import csv
import json
import pathlib
import subprocess
import sys
import tempfile

import datasets
from lm_eval.api.model import TemplateLM
from lm_eval.tasks import TaskManager


def json_lines(path, limit):
    with open(path, encoding="utf-8") as file:
        lines = [json.loads(line) for line in file if line.strip()]
    return lines[:limit]


def labelled(question):
    choices = question["choices"]
    return {"text": [each["text"] for each in choices], "label": [each["label"] for each in choices]}


def piqa(data, limit):
    labels = (data / "piqa/valid-labels.lst").read_text().split()
    return [{**doc, "label": int(label)} for doc, label in zip(json_lines(data / "piqa/valid.jsonl", limit), labels)]


def arc(name):
    def read(data, limit):
        return [{"question": doc["question"]["stem"], "choices": labelled(doc["question"]), "answerKey": doc["answerKey"]}
                for doc in json_lines(data / f"arc/ARC-{name}-Test.jsonl", limit)]
    return read


def openbookqa(data, limit):
    return [{**doc, "choices": {"text": doc["choices"], "label": list("ABCD")}}
            for doc in json_lines(data / "openbookqa/openbookqa_test.jsonl", limit)]


def boolq(data, limit):
    return [{**doc, "label": ["false", "true"].index(str(doc["label"]).lower())} for doc in json_lines(data / "boolq/val.jsonl", limit)]


def rte(data, limit):
    return [{"sentence1": doc["premise"], "sentence2": doc["hypothesis"], "label": ["entailment", "not_entailment"].index(doc["label"])}
            for doc in json_lines(data / "rte/val.jsonl", limit)]


def truthfulqa(data, limit):
    docs = json.loads((data / "truthfulqa/v0/mc_task.json").read_text(encoding="utf-8"))[:limit]
    return [{"question": doc["question"],
             "mc1_targets": {"choices": list(doc["mc1_targets"]), "labels": list(doc["mc1_targets"].values())}} for doc in docs]


def hellaswag(data, limit):
    """The texts by hand, and those of a file whose prompts are made already: cleaning them once more changes nothing."""
    docs = list(HELLASWAG)
    for doc in json_lines(data / "hellaswag/hellaswag_val.jsonl", limit):
        label, context = doc["query"].split(": ", 1)
        docs.append({"activity_label": label, "ctx_a": context, "ctx_b": "", "endings": doc["choices"], "label": str(doc["gold"])})
    return docs


def mmlu(subject):
    def read(data, limit):
        with open(data / f"mmlu/test/{subject}_test.csv", encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))[:limit]
        return [{"question": row["question"], "choices": [row[f"choice{i}"] for i in range(4)], "answer": int(row["answer"]),
                 "subject": subject} for row in rows]
    return read


# HellaSwag as it was published, by hand: what its cleaning has to cope with.
HELLASWAG = [
    {"activity_label": "Making tea", "ctx_a": "A man [header] How to [title] boil  water", "ctx_b": "the WATER  is", "label": "2",
     "endings": ["[substeps] Take a pot. [title] Heat it.", " hot   and [x\ny] wet. ", "éCLAIR [[a] b]", "poured."]},
    {"activity_label": "Running", "ctx_a": "Élan runs.", "ctx_b": "", "label": "0", "endings": ["a", "b", "c", "d"]},
    {"activity_label": "X", "ctx_a": "he", "ctx_b": "ÉTÉ Ǆ İs", "label": "3", "endings": ["[title] a", " [title] b", "c]", "[d"]},
]

# By the harness's name: our name, our file, the documents, the split.
TASKS = {
    "piqa": ("piqa", "piqa/valid.jsonl", piqa, "validation"),
    "winogrande": ("winogrande", "winogrande/winogrande_dev.jsonl",
                   lambda data, limit: json_lines(data / "winogrande/winogrande_dev.jsonl", limit), "validation"),
    "lambada_openai": ("lambada_openai", "lambada_openai/lambada_test.jsonl",
                       lambda data, limit: json_lines(data / "lambada_openai/lambada_test.jsonl", limit), "test"),
    "openbookqa": ("openbookqa", "openbookqa/openbookqa_test.jsonl", openbookqa, "test"),
    "boolq": ("boolq", "boolq/val.jsonl", boolq, "validation"),
    "rte": ("rte", "rte/val.jsonl", rte, "validation"),
    "arc_easy": ("arc_easy", "arc/ARC-Easy-Test.jsonl", arc("Easy"), "test"),
    "arc_challenge": ("arc_challenge", "arc/ARC-Challenge-Test.jsonl", arc("Challenge"), "test"),
    "truthfulqa_mc1": ("truthfulqa_mc1", "truthfulqa/v0/mc_task.json", truthfulqa, "validation"),
    "hellaswag": ("hellaswag", None, hellaswag, "validation"),
}


def tasks_of(data):
    """And every subject of MMLU that is there."""
    subjects = sorted(path.name.removesuffix("_test.csv") for path in (data / "mmlu/test").glob("*_test.csv"))
    return TASKS | {f"mmlu_{each}": ("mmlu", f"mmlu/test/{each}_test.csv", mmlu(each), "test") for each in subjects}


class Splitter(TemplateLM):
    """The harness's own splitting, with a tokenizer and nothing else."""
    backend = "causal"

    def __init__(self, directory, protocol):
        super().__init__()
        self.protocol = protocol
        directory = pathlib.Path(directory)
        self.adds_bos = (directory / "tokenizer.model").exists()
        if (directory / "tokenizer.json").exists():
            from transformers import AutoTokenizer
            model = AutoTokenizer.from_pretrained(directory)
            self.vocabulary, self.bos, self.eos = len(model), model.bos_token_id, model.eos_token_id
            self.plain = lambda text: model.encode(text, add_special_tokens=False)
            self.adds_bos = model.encode("a") != self.plain("a")
        elif self.adds_bos:
            import sentencepiece
            model = sentencepiece.SentencePieceProcessor(model_file=str(directory / "tokenizer.model"))
            self.vocabulary, self.bos, self.eos, self.plain = model.vocab_size(), model.bos_id(), model.eos_id(), model.encode
        else:
            from tokenizers import ByteLevelBPETokenizer
            model = ByteLevelBPETokenizer(str(directory / "vocab.json"), str(directory / "merges.txt"))
            names = model.get_vocab()
            end = names.get("</s>", names.get("<|endoftext|>"))
            self.vocabulary, self.bos, self.eos, self.plain = model.get_vocab_size(), end, end, lambda text: model.encode(text).ids
            self.adds_bos = "</s>" in names

    @property
    def eot_token_id(self):
        return self.eos

    @property
    def prefix_token_id(self):
        return self.eos if self.protocol == "paper" else self.bos

    def tok_encode(self, string, add_special_tokens=None, **_):
        bos = add_special_tokens is not False and self.protocol == "lm-eval" and self.adds_bos
        return ([self.bos] if bos else []) + self.plain(string)

    def _loglikelihood_tokens(self, requests, **_):
        self.split = [(context, continuation) for _, context, continuation in requests]
        return [(0.0, True)] * len(requests)

    def loglikelihood_rolling(self, requests, **_):
        raise NotImplementedError

    def generate_until(self, requests, **_):
        raise NotImplementedError


def model_folder(splitter, tokenizer, folder):
    """A model that has this tokenizer, as far as print_requests looks at it."""
    for file in pathlib.Path(tokenizer).iterdir():
        if file.is_file() and (file.suffix not in (".safetensors", ".bin", ".txt", ".jsonl") or file.name == "merges.txt"):
            (folder / file.name).write_bytes(file.read_bytes())
    if not (folder / "config.json").exists():
        (folder / "config.json").write_text(json.dumps({
            "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 256, "intermediate_size": 512,
            "num_hidden_layers": 1, "num_attention_heads": 4, "num_key_value_heads": 4, "vocab_size": splitter.vocabulary,
            "max_position_embeddings": 2048, "rms_norm_eps": 1e-5, "hidden_act": "silu", "torch_dtype": "float16",
            "tie_word_embeddings": False, "bos_token_id": splitter.bos, "eos_token_id": splitter.eos}))
    return folder


def file_of_ours(task, file, docs, folder):
    """What our program reads: the file, a folder with it alone, or documents as the harness has them."""
    if file is None:
        file = folder / f"{task}.jsonl"
        file.write_text("".join(json.dumps(doc) + "\n" for doc in docs), encoding="utf-8")
    if task == "mmlu":
        (folder / "mmlu").mkdir()
        (folder / "mmlu" / file.name).write_bytes(file.read_bytes())
        return folder / "mmlu"
    return file


def task_of_harness(name, docs, split):
    """The harness's task with these documents and its requests built."""
    documents = datasets.DatasetDict({each: datasets.Dataset.from_list(docs if each == split else docs[:1])
                                      for each in ("train", "validation", "test", "dev")})
    load, datasets.load_dataset = datasets.load_dataset, lambda *_, **__: documents
    try:
        loaded = TaskManager().load_task_or_group(name)
    finally:
        datasets.load_dataset = load
    while not hasattr(loaded, "build_all_requests"):
        loaded = next(iter(loaded.values()))
    loaded.set_config("num_fewshot", 0)
    loaded.build_all_requests(rank=0, world_size=1)
    return loaded


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--program", required=True)
    parser.add_argument("--data", type=pathlib.Path, required=True)
    parser.add_argument("--tokenizer", action="append", required=True)
    parser.add_argument("--limit", type=int, default=50)
    parser.add_argument("--task", action="append")
    arguments = parser.parse_args()
    wrong = 0
    for name, (ours, file, read, split) in tasks_of(arguments.data).items():
        if arguments.task and name not in arguments.task:
            continue
        docs = read(arguments.data, arguments.limit)
        instances = task_of_harness(name, docs, split).instances
        for tokenizer in arguments.tokenizer:
            for protocol in ("lm-eval", "paper"):
                splitter = Splitter(tokenizer, protocol)
                splitter.loglikelihood(instances, disable_tqdm=True)
                with tempfile.TemporaryDirectory() as temporary:
                    folder = pathlib.Path(temporary)
                    model = model_folder(splitter, tokenizer, folder)
                    path = file_of_ours(ours, arguments.data / file if file else None, docs, folder)
                    printed = subprocess.run([arguments.program, str(model), ours, str(path), protocol, str(len(docs))], check=True,
                                             stdout=subprocess.PIPE, text=True).stdout
                requests = [json.loads(line) for line in printed.splitlines()]
                differ = abs(len(requests) - len(instances))
                for request, instance, (context, continuation) in zip(requests, instances, splitter.split):
                    if (request["context"], request["continuation"]) == instance.args and \
                            request["context_ids"] == list(context) and request["continuation_ids"] == list(continuation):
                        continue
                    if differ == 0:
                        print("differs:", request, instance.args, context, continuation, sep="\n  ")
                    differ += 1
                wrong += differ
                print(f"{name}, {pathlib.Path(tokenizer).name}, {protocol}: {len(instances)} requests, {differ} differ", flush=True)
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
