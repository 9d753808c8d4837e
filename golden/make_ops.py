"""Makes golden/ops: what PyTorch computes in f64 for single ops, gradients included.

    python golden/make_ops.py              # all of them
    python golden/make_ops.py attention     # only these

One function per op; it returns the tensors of its file, named `case.tensor`. Inputs are rounded to f32 before anything is
computed, so that the stored ones are exactly those. Deterministic: the seed is the op's name.
"""

import sys
import zlib
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch.nn.functional import cross_entropy as cross_entropy_of_logits
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


def lora():
    """A layer of 30 inputs and 44 outputs with PEFT's adapter of rank 5: `lora_alpha` 7, so a scale of 1.4."""
    return peft_layer(use_dora=False)


def dora():
    """The same with magnitudes, which training has moved away from the norms."""
    return peft_layer(use_dora=True)


def peft_layer(use_dora):
    from peft import LoraConfig, inject_adapter_in_model

    model = torch.nn.Sequential(torch.nn.Linear(30, 44)).to(torch.float64)
    config = LoraConfig(r=5, lora_alpha=7, lora_dropout=0.0, target_modules=["0"], use_dora=use_dora)
    layer = inject_adapter_in_model(config, model)[0]
    weight, bias, a, b = random(44, 30), random(44), random(5, 30), random(44, 5)
    parameters = {"a": layer.lora_A["default"].weight, "b": layer.lora_B["default"].weight}
    values = {"a": a, "b": b}
    if use_dora:
        parameters["magnitude"] = layer.lora_magnitude_vector["default"].weight
        values["magnitude"] = random(44)
    with torch.no_grad():
        layer.base_layer.weight.copy_(weight)
        layer.base_layer.bias.copy_(bias)
        for name, parameter in parameters.items():
            parameter.data = values[name].detach().clone()
    model.train()
    x = random(3, 7, 30)
    y = model(x)
    dy = random(*y.shape)
    y.backward(dy)
    tensors = dict(x=x, weight=weight, bias=bias, dy=dy, y=y, d_x=x.grad) | values
    return tensors | {f"d_{name}": parameter.grad for name, parameter in parameters.items()}


OPS = {op.__name__: op for op in (attention, cross_entropy, dora, lora)}

if __name__ == "__main__":
    main()
