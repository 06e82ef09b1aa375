#!/usr/bin/env python3
"""Compares what a model answers with lm-evaluation-harness: every log-likelihood, every choice, and so every accuracy.

    pip install lm-eval torch transformers sentencepiece
    roundhouse run CONFIG                  # any run of MODEL
    compare_answers.py --program build/bin/roundhouse --model MODEL --run RUN --data TASK_DATA [--limit 50] [--task piqa ...]

The harness runs the model in float32 by transformers. Log-likelihoods have to agree to 1e-3; a choice may differ only where the two
likeliest are closer than that.
"""
import argparse
import json
import pathlib
import subprocess
import sys
import tempfile

from lm_eval.models.huggingface import HFLM

from compare_tasks import file_of_ours, task_of_harness, tasks_of

TOLERANCE = 1e-3


def ours(arguments, task, file, protocol):
    """Log-likelihoods, choices and figures by our program, which keeps them in the run."""
    name = f"compared-{task}"
    subprocess.run([arguments.program, "evaluate", arguments.run, "--recipe", "original", "--task", task, "--file", file,
                    "--name", name, "--limit", str(arguments.limit), "--protocol", protocol], check=True, stdout=subprocess.DEVNULL)
    answers = (arguments.run / "results/original" / f"{name}.jsonl").read_text().splitlines()
    return [json.loads(line) for line in answers], json.loads((arguments.run / "results/original.json").read_text())["tasks"][name]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--program", required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--run", type=pathlib.Path, required=True)
    parser.add_argument("--data", type=pathlib.Path, required=True)
    parser.add_argument("--limit", type=int, default=50)
    parser.add_argument("--task", action="append")
    parser.add_argument("--protocol", action="append", choices=["lm-eval", "paper"])
    arguments = parser.parse_args()
    wrong = 0
    print("| task | protocol | documents | acc | acc_norm | largest difference | items that differ |\n|---|---|---:|---:|---:|---:|---:|")
    for protocol in arguments.protocol or ("lm-eval", "paper"):
        model = HFLM(pretrained=arguments.model, dtype="float32", device="cpu", batch_size=1,
                     **({"add_bos_token": False} if protocol == "paper" else {}))
        for name, (task, file, read, split) in tasks_of(arguments.data).items():
            if arguments.task and name not in arguments.task:
                continue
            docs = read(arguments.data, arguments.limit)[:arguments.limit]
            harness = task_of_harness(name, docs, split)
            results = model.loglikelihood(harness.instances, disable_tqdm=True)
            with tempfile.TemporaryDirectory() as temporary:
                path = file_of_ours(task, arguments.data / file if file else None, docs, pathlib.Path(temporary))
                answers, figures = ours(arguments, task, path, protocol)
            by_document = {}
            for instance, result in zip(harness.instances, results):
                by_document.setdefault(instance.doc_id, (instance.doc, []))[1].append(result)
            assert len(answers) == len(by_document), (len(answers), len(by_document))
            largest, differ, metrics = 0.0, 0, {"acc": 0.0, "acc_norm": 0.0}
            for answer, (doc, theirs) in zip(answers, by_document.values()):
                largest = max(largest, *(abs(a - b[0]) for a, b in zip(answer["log_likelihoods"], theirs)))
                judged = harness.process_results(doc, theirs)
                right = {"acc": answer["greedy"]} if "greedy" in answer else {"acc": answer["choice"] == answer["gold"]}
                if "choice_norm" in answer:
                    right["acc_norm"] = answer["choice_norm"] == answer["gold"]
                for metric, value in right.items():
                    metrics[metric] += judged[metric]
                    differ += float(value) != float(judged[metric])
            total = len(answers)
            same = abs(figures["acc"] - metrics["acc"] / total) < 1e-12
            wrong += differ + (largest > TOLERANCE) + (not same)
            acc_norm = f"{metrics['acc_norm'] / total:.4f}" if "acc_norm" in figures else ""
            print(f"| {name} | {protocol} | {total} | {metrics['acc'] / total:.4f} | {acc_norm} | {largest:.1e} | {differ} |", flush=True)
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
