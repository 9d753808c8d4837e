"""Makes golden/ops: what PyTorch computes in f64 for single ops, gradients included.

    python golden/make_ops.py              # all of them
    python golden/make_ops.py lora         # only these

One function per op; it returns the tensors of its file, named `case.tensor`. Inputs are rounded to f32 before anything is
computed, so that the stored ones are exactly those. Deterministic: the seed is the op's name.
"""

import sys
import zlib
from pathlib import Path

import torch
from safetensors.torch import save_file

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


OPS = {"dora": dora, "lora": lora}

if __name__ == "__main__":
    main()
