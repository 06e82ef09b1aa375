"""What a run is made of is known by its content. Files that changed behind a run are noticed before anything is computed, and the
same content at another place is accepted, with the same bits.

identity.py --program FILE --source FOLDER --mpiexec FILE
"""
import argparse
import json
import os
import pathlib
import shutil
import struct
import sys

from small_run import Failure, SmallRun, check


def data_range(content, tensor):
    length = struct.unpack("<Q", content[:8])[0]
    begin, end = json.loads(content[8:8 + length])[tensor]["data_offsets"]
    return 8 + length + begin, 8 + length + end


def change_weight(model, tensor, byte=9000):
    """Flips a bit behind the first pages of a tensor; size and modification time stay what they were."""
    path = model / "model.safetensors"
    times = path.stat()
    content = bytearray(path.read_bytes())
    begin, end = data_range(content, tensor)
    check(begin + byte < end, f"{tensor} has no byte {byte}")
    content[begin + byte] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


class Tests:
    def __init__(self, options):
        self.run = SmallRun(options)
        self.run.finish()
        self.expected = self.run.hashes()
        self.whole = self.run.folder / "whole"
        shutil.copytree(self.run.run, self.whole)
        self.model = self.run.folder / "model-whole"
        shutil.copytree(self.run.model, self.model)

    def half_done(self):
        """A run of which the last block of two recipes, the exports and the results are still to be made, of the right model."""
        shutil.rmtree(self.run.run)
        shutil.copytree(self.whole, self.run.run)
        for name in ("model.safetensors", "tokenizer_config.json"):
            shutil.copy(self.model / name, self.run.model / name)
        self.run.finish()  # the copied files are known again
        for block in self.run.run.glob("recipes/[ag]*/block-0002.h5"):
            block.unlink()
        shutil.rmtree(self.run.run / "export")
        shutil.rmtree(self.run.run / "results")

    def refused(self, *words, ranks=1, arguments=(), environment=None):
        before = self.run.hashes()
        said = self.run.finish(*arguments, expect=2, ranks=ranks, environment=environment)
        for word in words:
            check(word in said, f"{word} is not named:\n{said}")
        check(self.run.hashes().keys() == before.keys(), f"something was made all the same:\n{said}")
        return next(line for line in said.splitlines() if words[0] in line)

    def goes_on(self, what, *arguments, **options):
        said = self.run.finish(*arguments, **options)
        actual = self.run.hashes()
        # These two name paths.
        differing = sorted(path for path in self.expected.keys() | actual.keys() if self.expected.get(path) != actual.get(path)
                           and path not in ("model.json", "config.yaml", "identity.json"))
        check(not differing, f"{what}: {' '.join(differing)} differ\n{said}")
        self.run.call("verify", self.run.run)
        print(f"{what}: gone on, same bits", flush=True)

    def ranks(self):
        """What records and notes say does not depend on who wrote them."""
        for ranks, pipeline in ((2, 1), (3, 3)):
            shutil.rmtree(self.run.run)
            self.goes_on(f"from the start on {ranks} ranks, {pipeline} stage(s)", "--set", f"mesh.pipeline={pipeline}", ranks=ranks)
            check(self.run.hashes()["model.json"] == self.expected["model.json"], "model.json depends on the ranks")

    def weights(self):
        for tensor in ("model.layers.0.mlp.down_proj.weight", "model.layers.1.self_attn.q_proj.weight",
                       "model.embed_tokens.weight", "lm_head.weight"):
            for ranks in (1, 3):
                self.half_done()
                change_weight(self.run.model, tensor)
                print(f"{tensor} changed, {ranks} rank(s):", self.refused(tensor, ranks=ranks), flush=True)
                shutil.copy(self.model / "model.safetensors", self.run.model / "model.safetensors")
            self.goes_on(f"{tensor} put back")

    def half_copied(self):
        """The first start meets a file of full length whose end is still to come, the second one the whole."""
        shutil.rmtree(self.run.run)
        path = self.run.model / "model.safetensors"
        content = path.read_bytes()
        begin, end = data_range(content, "model.layers.1.mlp.down_proj.weight")
        path.write_bytes(content[:begin + 5000] + bytes(end - begin - 5000) + content[end:])
        self.run.finish()
        for made in [*self.run.run.glob("recipes/*/block-0002.h5"), *self.run.run.glob("results/*.json")]:
            made.unlink()
        shutil.rmtree(self.run.run / "export")
        path.write_bytes(content)
        print("half copied at the first start:", self.refused("model.layers.1.mlp.down_proj.weight"), flush=True)

    def lost_memory(self):
        """What records say is enough."""
        self.half_done()
        (self.run.run / "model.json").unlink()
        change_weight(self.run.model, "model.layers.0.mlp.down_proj.weight")
        self.refused("model.layers.0.mlp.down_proj.weight")
        shutil.copy(self.model / "model.safetensors", self.run.model / "model.safetensors")
        self.goes_on("model.json lost")

    def lost_identity(self):
        """Finished work of other settings, or of an earlier version, is not made again unasked."""
        self.half_done()
        identity = self.run.run / "identity.json"
        identity.write_text(identity.read_text() + " ")
        self.refused("identity.json is damaged", "gptq-w3g32/block-0000", arguments=("--set", "calibration.seed=8"))
        self.goes_on("identity.json damaged, the same settings")
        self.half_done()
        identity.write_text("{}")
        for record in self.run.run.glob("recipes/*/*.h5"):
            content = record.read_bytes()
            record.write_bytes(content.replace(b"roundhouse-record 2", b"roundhouse-record 1", 1))
        print("earlier version:", self.refused("earlier version"), flush=True)

    def copies(self):
        self.half_done()
        copy = self.run.folder / "model-elsewhere"
        shutil.copytree(self.model, copy)
        self.goes_on("a copy of the model at another place", "--set", f"model={copy}", ranks=2)

    def tokenizer(self):
        self.half_done()
        path = self.run.model / "tokenizer_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"add_bos_token": False}))
        print("add_bos_token changed:", self.refused("tokenizer"), flush=True)

    def copied_files(self):
        self.half_done()
        self.run.finish()
        (self.run.model / "generation_config.json").write_text('{"bos_token_id": 1}\n')
        self.run.finish()
        for export in self.run.run.glob("export/*/*/SHA256SUMS"):
            check((export.parent / "generation_config.json").exists(), f"{export.parent} is not written again with what the model has now")
        (self.run.model / "generation_config.json").unlink()
        self.goes_on("a file that exports carry along came and went")

    def texts(self):
        self.half_done()
        text = self.run.folder / "calibration.jsonl"
        content = text.read_text()
        moved = self.run.folder / "elsewhere" / "text.jsonl"
        moved.parent.mkdir()
        text.rename(moved)
        self.goes_on("calibration text gone, windows whole")
        self.half_done()
        self.goes_on("calibration text at another place", "--set", f"calibration.text={moved}")
        self.half_done()
        text.write_text(json.dumps({"text": "entirely other words " * 500}) + "\n")
        for lost in (False, True):
            if lost:
                (self.run.run / "calibration.h5").unlink()
            print("calibration text rewritten:", self.refused("calibration.text"), flush=True)
        text.write_text(content)
        self.goes_on("calibration text written back")

    def evaluation(self):
        self.half_done()
        self.run.finish()
        text = self.run.folder / "test.txt"
        content = text.read_text()
        figure = lambda: json.loads((self.run.run / "results/original.json").read_text())["perplexity"]["test"]
        before = figure()
        text.write_text(content[::-1])
        self.run.finish()
        check(figure() != before, "another text of the same name was not measured")
        text.write_text(content)
        self.goes_on("evaluation text changed and changed back")

    def devices(self):
        self.half_done()
        # oneDNN keeps to these vectors.
        other = {"ONEDNN_MAX_CPU_ISA": "SSE41", "DNNL_MAX_CPU_ISA": "SSE41"}
        print("another kind of CPU:", self.refused("SSE4.1", "allow_other_device", environment=other), flush=True)
        said = self.run.finish("--set", "allow_other_device=true", environment=other)
        check("allow_other_device" in said, f"the run does not say that it mixes devices:\n{said}")
        check("different kinds of device" in (self.run.run / "report/results.md").read_text(), "the report does not say it")
        self.run.call("verify", self.run.run)
        print("another kind of CPU, allowed: gone on, and the report says so", flush=True)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--program", type=pathlib.Path, required=True)
    parser.add_argument("--source", type=pathlib.Path, required=True)
    parser.add_argument("--mpiexec", required=True)
    tests = None
    try:
        tests = Tests(parser.parse_args())
        for case in (tests.ranks, tests.weights, tests.half_copied, tests.lost_memory, tests.lost_identity, tests.copies, tests.tokenizer, tests.copied_files, tests.texts, tests.evaluation, tests.devices):
            case()
    except Failure as failure:
        print(f"FAILED: {failure}", flush=True)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
