"""scripts/gpu_campaign.sh and scripts/make_bundle.sh, without a GPU.

campaign_test.py CASE --build FOLDER --source FOLDER
"""
import argparse
import json
import os
import pathlib
import py_compile
import shutil
import subprocess
import sys
import tempfile

BLOCK_STEPS = ("gptq", "signround", "awq")


def campaign(options, folder, steps, **environment):
    """Runs the script; returns its exit code, what it printed, and results.json's steps."""
    out = folder / "out"
    settings = {"OUT": out, "WORK": folder, "CAMPAIGN_DEVICE": "cpu", "CAMPAIGN_SIZE": "smoke", "CAMPAIGN_STEPS": steps,
                "PROGRAMS": options.build / "bin", **environment}
    ran = subprocess.run([options.source / "scripts/gpu_campaign.sh"], capture_output=True, text=True,
                         env={**os.environ, **{key: str(value) for key, value in settings.items()}})
    print(ran.stdout, ran.stderr, sep="")
    assert not list(folder.glob("gpu-campaign.*")), "it leaves its scratch folder behind"
    return ran.returncode, ran.stdout, json.loads((out / "results.json").read_text())["steps"]


def whole(options, folder):
    """A few seconds of each step: every step leaves its figures."""
    code, printed, steps = campaign(options, folder, f"card start bundled {' '.join(BLOCK_STEPS)} squeezellm again rates kernels sanitizer")
    assert code == 0, code
    for name in ("card", "start", "model", "bundled", *BLOCK_STEPS, "again", "kernels"):
        assert steps[name]["status"] == "ok", (name, steps[name])
    for name in ("rates", "sanitizer"):
        assert steps[name]["status"] == "skipped" and steps[name]["why"], (name, steps[name])
    assert steps["squeezellm"]["status"] == "ok" or steps["squeezellm"]["why"].startswith("not built"), steps["squeezellm"]
    for name in BLOCK_STEPS:
        for facts in steps[name]["recipes"].values():
            assert len(facts["seconds_by_block"]) == 2 and facts["phases"]["commit"] > 0 and facts["tflops"], facts
        assert steps[name]["full_problem_seconds"] > 0
        row = printed[printed.index(f"\n{name}, "):].split("together", 1)[1].splitlines()[0].split()
        assert float(row[-1]) == round(steps[name]["full_problem_seconds"], 2), row
    assert steps["again"]["records"] == 12 and not steps["again"]["differing"], steps["again"]
    assert all(kernel["rate"] > 0 for kernel in steps["kernels"]["kernels"])
    files = list((folder / "out").iterdir())
    assert len(files) <= 8 and all(file.stat().st_size <= 16 << 20 for file in files), files
    for source in (options.source / "scripts/gpu_campaign").glob("*.py"):
        py_compile.compile(str(source), cfile=str(folder / "compiled"), doraise=True)


def programs_that(folder, start):
    """Programs that find every library; roundhouse does what `start` says."""
    programs = folder / "programs"
    programs.mkdir()
    for name in ("kernels_bench", "block_bench", "comm_device_device_transport_test"):
        shutil.copy(shutil.which("true"), programs / name)
    (programs / "roundhouse").write_text(f"#!/bin/bash\n{start}\n")
    (programs / "roundhouse").chmod(0o755)
    return programs


def hang(options, folder):
    """A program that ignores SIGTERM and has a child that does: both are gone when the campaign is over, and the rest was done."""
    pids = folder / "pids"
    programs = programs_that(folder, f"""trap '' TERM
(trap '' TERM; sleep 1000) &
echo $$ $! > {pids}
wait; sleep 1000""")
    code, _, steps = campaign(options, folder, "start kernels sanitizer", PROGRAMS=programs, CAMPAIGN_SECONDS=32)
    assert code == 1 and steps["start"]["status"] == "out of time", steps
    assert steps["kernels"]["status"] == "no time left", steps
    for pid in pids.read_text().split():
        state = pathlib.Path(f"/proc/{pid}/stat")
        assert not state.exists() or state.read_text().rsplit(")", 1)[1].split()[0] == "Z", f"process {pid} lives"


def faults(options, folder):
    """What fails is said to have failed, with the reason, and does not stop the rest."""
    programs = programs_that(folder, "exit 3")
    code, _, steps = campaign(options, folder, "card start bundled gptq again", PROGRAMS=programs)
    failed = {name for name, facts in steps.items() if facts["status"].startswith("failed")}
    assert code == 1 and failed == {"start", "model", "bundled", "gptq"}, steps
    assert steps["card"]["status"] == "ok" and "exit code 3" in steps["bundled"]["why"], steps
    assert "not synthesized" in steps["gptq"]["why"], steps
    assert steps["again"]["status"] == "skipped", steps
    asked = subprocess.run([options.source / "scripts/gpu_campaign.sh"], capture_output=True, text=True,
                           env={**os.environ, "PROGRAMS": str(programs), "OUT": str(folder / "out"), "WORK": str(folder),
                                "CAMPAIGN_STEPS": "card frobnicate"})
    assert asked.returncode == 1 and "frobnicate: not one of card, start" in asked.stderr, asked


def perplexity(options, folder):
    """A device whose perplexities are the CPU's passes, one that is 3 % off at one recipe does not, nor one that lacks a recipe."""
    cpu = json.loads((options.source / "scripts/gpu_campaign/cpu_baseline.json").read_text())["perplexity"]
    results = folder / "results"
    programs = programs_that(folder, f"""for word; do case $word in run=*) run=${{word#run=}} ;; esac; done
mkdir -p "$run" && cp -r {results} "$run/"
""")

    def answer(found):
        shutil.rmtree(results, ignore_errors=True)
        results.mkdir()
        for recipe, value in found.items():
            (results / f"{recipe}.json").write_text(json.dumps({"recipe": recipe, "perplexity": {"test": value}}))
        return campaign(options, folder, "bundled", PROGRAMS=programs, CAMPAIGN_SIZE="small")[2]["bundled"]

    assert answer(cpu)["status"] == "ok"
    near = answer({**cpu, "gptq-w3g128": cpu["gptq-w3g128"] * 1.01})
    assert near["status"] == "ok" and abs(near["worst_difference"] - 0.01) < 1e-9, near
    off = answer({**cpu, "gptq-w3g128": cpu["gptq-w3g128"] * 1.03})
    assert off["status"].startswith("failed") and "3.00 % from the CPU's" in off["why"], off
    assert answer({**cpu, "gptq-w3g128": float("nan")})["status"].startswith("failed")
    cpu.pop("awq-w3g128")
    assert "awq-w3g128" in answer(cpu)["why"]


def sanitizer(options, folder):
    """Clean only if compute-sanitizer finds nothing in tests that did run."""
    programs, tools = programs_that(folder, "exit 0"), folder / "tools"
    tools.mkdir()
    (tools / "compute-sanitizer").write_text("""#!/bin/bash
while [ "${1#--}" != "$1" ]; do shift 2; done
"$@" && echo "========= ERROR SUMMARY: 0 errors"
""")
    names = ("memory", "quantization", "learned_rounding", "activation_aware", "transformer", "gradients", "linear_algebra")

    def answer(**scripts):
        for name in names:
            script = scripts.get(name, 'echo "[  PASSED  ] 3 tests."')
            (programs / f"kernels_{name}_test").write_text(f"#!/bin/bash\n{script}\n")
            (programs / f"kernels_{name}_test").chmod(0o755)
        return campaign(options, folder, "sanitizer", PROGRAMS=programs, CAMPAIGN_DEVICE="cuda",
                        PATH=f"{tools}:{os.environ['PATH']}")[2]["sanitizer"]

    (tools / "compute-sanitizer").chmod(0o755)
    clean = answer()
    assert clean["status"] == "ok" and len(clean["verdicts"]) == 12, clean
    for script in ("exit 9", 'echo "[  PASSED  ] 0 tests."'):
        bad = answer(gradients=script)
        assert bad["status"].startswith("failed") and bad["why"].endswith("memcheck-gradients racecheck-gradients"), bad


def bundle(options, folder):
    """Packed, and unpacked elsewhere: programs run, tests find their golden files without the tree they were built from."""
    packed = folder / "bundle.tar.xz"
    subprocess.run([options.source / "scripts/make_bundle.sh", options.build, packed], check=True)
    environment = {"PROGRAMS": "", "BUNDLE": packed}
    code, _, steps = campaign(options, folder, "start gptq", **environment)
    assert code == 0 and steps["start"]["missing_libraries"] == [], steps
    subprocess.run(["tar", "xf", packed, "-C", folder], check=True)
    run = folder / "bundle/run"
    golden = ["kernels_gradients_test", "--gtest_brief=1", "--gtest_filter=*Torchs/cpu"]
    clean = {key: value for key, value in os.environ.items() if key != "ROUNDHOUSE_SOURCE_DIR"}
    there = subprocess.run([run, *golden], cwd="/", env=clean, capture_output=True, text=True)
    assert there.returncode == 0 and "PASSED" in there.stdout, there
    (folder / "bundle/tests/golden/gradients.json").unlink()
    gone = subprocess.run([run, *golden], cwd="/", env=clean, capture_output=True, text=True)
    assert gone.returncode != 0, "golden files are read from where it was built"
    listed = subprocess.run(["tar", "tf", packed], check=True, capture_output=True, text=True).stdout
    assert "tests/data" not in listed, listed


def main():
    cases = {case.__name__: case for case in (whole, hang, faults, perplexity, sanitizer, bundle)}
    parser = argparse.ArgumentParser()
    parser.add_argument("case", choices=cases)
    parser.add_argument("--build", type=pathlib.Path, required=True)
    parser.add_argument("--source", type=pathlib.Path, required=True)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="roundhouse-campaign-") as folder:
        cases[options.case](options, pathlib.Path(folder))


if __name__ == "__main__":
    sys.exit(main())
