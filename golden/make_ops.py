"""Makes golden/ops: what PyTorch computes in f64 for single ops, gradients included.

    python golden/make_ops.py              # all of them
    python golden/make_ops.py attention    # only these

One function per op; it returns the tensors of its file, named `case.tensor`. Inputs are rounded to f32 before anything is
computed, so that the stored ones are exactly those. Deterministic: the seed is the op's name.
"""

import sys
import zlib
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch.nn.functional import scaled_dot_product_attention

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


def attention():
    """Attention of three packed sequences to themselves: 4 heads of 12, 2 key/value heads."""
    starts, scale = [0, 9, 10, 23], 0.3
    tensors = {}
    for case, causal, window, soft_cap in [("causal", True, None, None), ("full", False, None, None), ("gemma", True, 5, 2.0)]:
        queries, keys, values = random(23, 4, 12, factor=2.0), random(23, 2, 12), random(23, 2, 12)
        outs, lses = [], []
        for start, end in zip(starts, starts[1:]):
            # [heads, rows, 12]
            q, k, v = (x[start:end].transpose(0, 1) for x in (queries, keys, values))
            k, v = (x.repeat_interleave(2, dim=0) for x in (k, v))
            scores = q @ k.transpose(1, 2) * scale
            if soft_cap:
                scores = soft_cap * torch.tanh(scores / soft_cap)
            row, key = torch.arange(end - start)[:, None], torch.arange(end - start)[None, :]
            seen = (key <= row) | (not causal)
            if window:
                seen &= key > row - window
            scores = scores.masked_fill(~seen, float("-inf"))
            outs.append((scores.softmax(-1) @ v).transpose(0, 1))
            lses.append(scores.logsumexp(-1))
            if not soft_cap:
                theirs = scaled_dot_product_attention(q, k, v, is_causal=causal, scale=scale)
                torch.testing.assert_close(outs[-1], theirs.transpose(0, 1))
        out = torch.cat(outs)
        d_out = random(*out.shape)
        out.backward(d_out)
        made = dict(queries=queries, keys=keys, values=values, d_out=d_out, out=out, lse=torch.cat(lses, dim=1))
        made |= dict(d_queries=queries.grad, d_keys=keys.grad, d_values=values.grad)
        tensors |= {f"{case}.{name}": tensor for name, tensor in made.items()}
    return tensors


OPS = {"attention": attention}

if __name__ == "__main__":
    main()
