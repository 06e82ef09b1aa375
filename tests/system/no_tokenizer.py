"""Round to nearest reads no text: of a directory without any tokenizer it is made and exported, and what would need one is refused.

    no_tokenizer.py --program build/bin/roundhouse --source .
"""

import argparse
import pathlib
import shutil
import subprocess
import sys
import tempfile


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--program", required=True)
    parser.add_argument("--source", type=pathlib.Path, required=True)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        model = folder / "model"
        shutil.copytree(arguments.source / "tests/data/tiny-world", model)
        for file in model.glob("tokenizer*"):
            file.unlink()

        def run(recipe, **more):
            settings = "".join(f"{key}: {value}\n" for key, value in more.items())
            (folder / "run.yaml").write_text(f"model: {model}\nrun: {folder / recipe}\nrecipes: [{{method: {recipe}, bits: 4, group_size: 64}}]\n"
                                             f"export: {{formats: [dense]}}\nthreads: 1\n{settings}")
            done = subprocess.run([arguments.program, "run", folder / "run.yaml"], capture_output=True, text=True)
            return done.returncode, done.stdout + done.stderr

        code, said = run("rtn")
        if code != 0 or not list((folder / "rtn/export").glob("*/dense/*.safetensors")):
            sys.exit(f"round to nearest ended with {code}:\n{said}")
        text = arguments.source / "tests/data/tiny-world/calibration.jsonl"
        code, said = run("gptq", calibration=f"{{text: {text}, samples: 2, sequence_length: 64}}")
        if code != 2 or "tokenizer.json: missing" not in said:
            sys.exit(f"GPTQ without a tokenizer ended with {code}:\n{said}")
        code, said = run("rtn", evaluate=f"{{perplexity: [{{text: {arguments.source / 'tests/data/tiny-world/test.txt'}, window: 64}}]}}")
        if code != 2 or "tokenizer.json: missing" not in said:
            sys.exit(f"an evaluation without a tokenizer ended with {code}:\n{said}")


if __name__ == "__main__":
    main()
