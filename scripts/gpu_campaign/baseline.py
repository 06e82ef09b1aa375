"""Makes cpu_baseline.json: the perplexities of the bundled model on this CPU."""
import json

import bundled
import card
import settings


def make():
    bundled.quantize("bundled")
    version = card.output_of(*settings.command("roundhouse", "--version"))
    baseline = {"command": "scripts/gpu_campaign.sh --baseline", "program": version, "processor": card.processor(),
                "config_sha256": bundled.config_hash(), "perplexity": bundled.perplexities("bundled")}
    settings.write_atomically(bundled.BASELINE, json.dumps(baseline, indent=1) + "\n")
    print(f"wrote {bundled.BASELINE}")
