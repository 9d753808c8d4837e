"""Makes golden/ops: what PyTorch computes in f64 for single ops, gradients included.

    python golden/make_ops.py              # all of them
    python golden/make_ops.py cross_entropy# only these

One function per op; it returns the tensors of its file, named `case.tensor`. Inputs are rounded to f32 before anything is
computed, so that the stored ones are exactly those. Deterministic: the seed is the op's name.
"""

import sys
import zlib
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch.nn.functional import cross_entropy as cross_entropy_of_logits

FOLDER = Path(__file__).parent / "ops"


def main():
    FOLDER.mkdir(exist_ok=True)
    for name in sys.argv[1:] or OPS:
        torch.manual_seed(zlib.crc32(name.encode()))
        tensors = {key: tensor.detach().to(torch.float32).contiguous() for key, tensor in OPS[name]().items()}
        save_file(tensors, FOLDER / f"{name}.safetensors")
        print(f"{name}: {len(tensors)} tensors, {(FOLDER / f'{name}.safetensors').stat().st_size} bytes")


def random(*shape, factor=1.0):
    """Normal numbers that f32 holds exactly."""
    return (torch.randn(*shape) * factor).to(torch.float64).requires_grad_()


def cross_entropy():
    """Losses of 7 tokens, two of them ignored (target -100), and the gradients of their sum: 12 inputs, 50 logits."""
    tensors = {}
    for case, smoothing, z_loss, soft_cap, scale in [
        ("plain", 0.0, 0.0, None, 1.0),
        ("smoothed", 0.1, 0.0, None, 1.0),
        ("gemma", 0.0, 0.0, 3.0, 1.0),
        ("all", 0.25, 1e-3, 4.0, 0.5),
    ]:
        hidden, weight = random(7, 12), random(50, 12)
        targets = torch.tensor([3, -100, 0, 49, 17, -100, 3])
        logits = hidden @ weight.t() * scale
        if soft_cap:
            logits = soft_cap * torch.tanh(logits / soft_cap)
        losses = cross_entropy_of_logits(logits, targets, reduction="none", label_smoothing=smoothing)
        losses = losses + z_loss * logits.logsumexp(-1) ** 2 * (targets >= 0)
        losses.sum().backward()
        made = dict(hidden=hidden, weight=weight, targets=targets, losses=losses)
        made |= dict(d_hidden=hidden.grad, d_weight=weight.grad)
        made |= dict(params=torch.tensor([smoothing, z_loss, soft_cap or 0.0, scale]))
        tensors |= {f"{case}.{name}": tensor for name, tensor in made.items()}
    return tensors


OPS = {"cross_entropy": cross_entropy}

if __name__ == "__main__":
    main()
