"""The engines that load exports: what to install, and how load_one.py calls them. A new version is a line here."""

# name -> (packages, loaders). All share one PyTorch, which is installed once.
ENGINES = {
    "transformers-5.24": (
        ["transformers==5.24.0", "compressed-tensors==0.20.0", "accelerate", "optimum", "gptqmodel==7.7.0"],
        ["transformers", "transformers-dequantize"],
    ),
    "transformers-5.23": (
        ["transformers==5.23.0", "compressed-tensors==0.19.0", "accelerate", "optimum", "gptqmodel==7.7.0"],
        ["transformers"],
    ),
    "transformers-5.17": (
        ["transformers==5.17.0", "compressed-tensors==0.19.0", "accelerate"],  # GPTQModel 7.7 wants a newer one
        ["transformers"],
    ),
    "transformers-4.57": (
        ["transformers==4.57.6", "compressed-tensors==0.18.0", "accelerate"],
        ["transformers"],
    ),
    "gptqmodel-7.7": (["gptqmodel==7.7.0"], ["gptqmodel"]),
    "autoawq-0.2.9": (["transformers==4.51.3", "autoawq==0.2.9", "accelerate"], ["autoawq"]),
}

PYTORCH = ["torch==2.15.0", "numpy", "sentencepiece"]
REFERENCE = "transformers-5.24"  # loads the dense exports that the others are compared with

# Named in the table's head where they are installed.
NAMED = ["transformers", "compressed-tensors", "gptqmodel", "autoawq"]

# Engines that need a GPU: docs/formats.md has what their sources say.
NOT_RUN = {"vLLM": "needs a GPU", "SGLang": "needs a GPU"}
