#!/usr/bin/env python3
"""AutoAWQ on the bundled model, on given token windows; see authors_comparison.py.

Prints one line of JSON: {"program", "perplexity", "seconds"}. Its search, folding and clipping run as they are, in float32; the
last step is its own rounding function over the weights they leave, since its packed linears know 4 bits only. Scales of that
step are float32.

Needs AutoAWQ 0.2.9, which wants an older transformers: pip install torch==2.6.0 transformers==4.51.3 autoawq==0.2.9
"numpy>=2" sentencepiece h5py protobuf
"""

import argparse
import json
import pathlib
import time
from importlib.metadata import version

import torch
from awq import AutoAWQForCausalLM
from awq.quantize.quantizer import AwqQuantizer

from gptq_reference import MODEL, STAGES, perplexity_of_weights, read_ids


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--calibration", type=pathlib.Path, required=True)
    parser.add_argument("--bits", type=int, default=4)
    parser.add_argument("--group-size", type=int, default=128)
    parser.add_argument("--duo-scaling", action="store_true")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)

    ids = read_ids(arguments.calibration)
    awq = AutoAWQForCausalLM.from_pretrained(str(MODEL), torch_dtype=torch.float32, device_map="cpu")
    begin = time.time()
    quantizer = AwqQuantizer(
        awq, awq.model, None, arguments.bits, arguments.group_size, zero_point=True, version="gemm",
        calib_data=ids.tolist(), split="train", text_column="text", duo_scaling=arguments.duo_scaling,
        export_compatible=True, max_calib_samples=len(ids), max_calib_seq_len=ids.shape[1])
    quantizer.quantize()
    weights = awq.model.float().state_dict()
    for block in range(awq.model.config.num_hidden_layers):
        for name in sum(STAGES, ()):
            key = f"model.layers.{block}.{name}.weight"
            weights[key] = quantizer.pseudo_quantize_tensor(weights[key])[0]
    seconds = time.time() - begin
    print(json.dumps({"program": f"AutoAWQ {version('autoawq')}, torch {torch.__version__}",
                      "perplexity": perplexity_of_weights(weights), "seconds": seconds}))


if __name__ == "__main__":
    main()
