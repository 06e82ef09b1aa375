"""Every kernel at the blocks' shapes, beside the rates of the machine that it measures itself."""
import settings


def measure(step):
    results = settings.WORK / "kernels_bench.json"
    size = [] if settings.SIZE == "full" else ["--small"]
    settings.check("kernels_bench", settings.DEVICE, *size, "--json", results)
    settings.note(step, **settings.read_json(results))
