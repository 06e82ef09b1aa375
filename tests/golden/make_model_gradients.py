"""Golden gradients of whole models from PyTorch's autograd, in float64.

    python3 make_model_gradients.py   writes model_gradients.json beside this file

Needs torch and numpy. Weights follow from a formula, the forward pass is that of make_logits.py. Of each linear of each block, over
all sequences: the sum of the gradient of a sequence's mean cross-entropy, and the sum of its squares
(tests/stages/sensitivity/gradient_walk_test.cpp).
"""

import json
import pathlib

import torch
import torch.nn.functional as F

from make_logits import config_of, formula_tokens, formula_weight, forward, shapes

HERE = pathlib.Path(__file__).resolve().parent
SEQUENCES, LENGTH = 3, 6
SHARED = dict(hidden_size=8, num_hidden_layers=2, num_attention_heads=2, vocab_size=24, torch_dtype="float32")
LLAMA = SHARED | dict(intermediate_size=12, rms_norm_eps=1e-5, rope_theta=10000.0)
MODELS = {
    "llama": config_of("llama", num_key_value_heads=1, tie_word_embeddings=False, **LLAMA),
    "mistral": config_of("mistral", num_key_value_heads=2, sliding_window=3, tie_word_embeddings=True, **LLAMA),
    "qwen3": config_of("qwen3", num_key_value_heads=1, head_dim=6, tie_word_embeddings=False, **LLAMA),
    "phi3": config_of("phi3", num_key_value_heads=2, pad_token_id=0, tie_word_embeddings=False, **LLAMA),
    "opt": config_of("opt", ffn_dim=12, do_layer_norm_before=True, **SHARED),
    "opt-norm-last": config_of("opt", ffn_dim=12, do_layer_norm_before=False, word_embed_proj_dim=4, **SHARED),
}


def gradients(name, config):
    weights = {tensor: formula_weight(tensor, shape) for tensor, shape in shapes(config).items()}
    linears = [tensor for tensor in weights if "layers." in tensor and weights[tensor].dim() == 2]
    for tensor in linears:
        weights[tensor].requires_grad_()
    tokens = formula_tokens(name, SEQUENCES, LENGTH, config["vocab_size"])
    sums = {tensor: torch.zeros_like(weights[tensor]) for tensor in linears}
    squares = {tensor: torch.zeros_like(weights[tensor]) for tensor in linears}
    losses = []
    for sequence in tokens:
        logits = forward(config, weights, sequence[None])[0]
        loss = F.cross_entropy(logits[:-1], torch.from_numpy(sequence[1:]))
        losses.append(float(loss.detach()))
        for tensor, gradient in zip(linears, torch.autograd.grad(loss, [weights[tensor] for tensor in linears])):
            sums[tensor] += gradient
            squares[tensor] += gradient**2

    def listed(values):
        return [float(f"{value:.7g}") for value in values.flatten()]

    return {"config": config, "sequences": SEQUENCES, "length": LENGTH, "losses": losses,
            "linears": {tensor.removesuffix(".weight"): {"sum": listed(sums[tensor]), "squares": listed(squares[tensor])}
                        for tensor in linears}}


def main():
    models = {name: gradients(name, config) for name, config in MODELS.items()}
    (HERE / "model_gradients.json").write_text(json.dumps(models, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()
