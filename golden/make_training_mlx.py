"""Makes golden/training/mlx-*: adapter folders as mlx-lm writes them, and the logits that it computes with them.

    pip install -r golden/requirements-mlx.txt
    python golden/make_training_mlx.py                    # all of them
    python golden/make_training_mlx.py mlx-qwen2-dora     # only this one

mlx-lm's own training code makes the layers and writes both files, after no steps and from values drawn here. The logits are
those of a fresh model that has loaded the folder. mlx-lm computes in f32.
"""

import os
import shutil
import sys
import zlib
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import mlx.core as mx
import numpy
from mlx.utils import tree_flatten
from mlx_lm.lora import CONFIG_DEFAULTS, train_model
from mlx_lm.tuner.utils import linear_to_lora_layers, load_adapters
from mlx_lm.utils import load_model

GOLDEN = Path(__file__).resolve().parent
LENGTHS = [23, 9]
SMALLEST_EFFECT = 0.05  # of the adapter on the logits, as a part of the largest


@dataclass
class Case:
    name: str
    model: str
    kind: str
    layers: int  # counted from the last one; -1 is all of them
    parameters: dict


def parameters(rank, scale, keys=None):
    """`lora_parameters` of a config file; without keys every linear layer of a block gets an adapter."""
    return {"rank": rank, "dropout": 0.0, "scale": scale} | ({"keys": keys} if keys else {})


QUERY_VALUE = ["self_attn.q_proj", "self_attn.v_proj"]
CASES = [
    Case("mlx-llama3-lora", "llama3", "lora", 16, parameters(4, 1.5, QUERY_VALUE)),
    Case("mlx-llama3-dora", "llama3", "dora", 1, parameters(3, 2.0)),
    Case("mlx-qwen2-lora", "qwen2", "lora", -1, parameters(3, 1.75)),
    Case("mlx-qwen2-dora", "qwen2", "dora", 2, parameters(5, 1.4, QUERY_VALUE + ["mlp.down_proj"])),
    Case("mlx-qwen3-lora", "qwen3", "lora", 1, parameters(4, 20.0, QUERY_VALUE + ["mlp.gate_proj"])),
    Case("mlx-qwen3-dora", "qwen3", "dora", -1, parameters(3, 1.5)),
]


def main():
    os.chdir(GOLDEN)  # mlx-lm writes the paths that it was given into adapter_config.json
    mx.set_default_device(mx.cpu)
    wanted = sys.argv[1:]
    unknown = set(wanted) - {case.name for case in CASES}
    if unknown:
        sys.exit(f"no such case: {', '.join(sorted(unknown))}")
    for case in CASES:
        if not wanted or case.name in wanted:
            make(case)


def make(case):
    folder = Path("training") / case.name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    values = draw_values(case)
    write_adapter(case, folder, values)
    assert same(mx.load(str(folder / "adapters.safetensors")), values), f"{case.name}: mlx-lm wrote other values"

    random = numpy.random.default_rng(zlib.crc32(case.name.encode()) + 1)
    expected = {}
    for index, length in enumerate(LENGTHS):
        ids = mx.array(random.integers(0, 100, length))
        plain = logits(load_base(case), ids)
        adapted = logits(load_adapters(load_base(case), str(folder)), ids)
        effect = (mx.abs(adapted - plain).max() / mx.abs(plain).max()).item()
        assert effect > SMALLEST_EFFECT, f"{case.name}: the adapter changes the logits by only {effect:.1e}"
        expected |= {f"ids_{index}": ids.astype(mx.int64), f"logits_{index}": adapted}
    mx.save_safetensors(str(folder / "expected.safetensors"), expected)
    size = sum(path.stat().st_size for path in folder.iterdir())
    print(f"{case.name:16} {size / 1e6:8.3f} MB   {len(values)} tensors, effect {effect:.2f}", flush=True)


def draw_values(case):
    """Random values of the names and shapes that mlx-lm gives these settings."""
    model = load_base(case)
    model.freeze()
    layers = min(case.layers, len(model.layers))
    linear_to_lora_layers(model, layers, case.parameters, use_dora=case.kind == "dora")
    random = numpy.random.default_rng(zlib.crc32(case.name.encode()))
    values = {}
    for name, tensor in sorted(tree_flatten(model.trainable_parameters())):
        noise = mx.array(random.standard_normal(tensor.shape).astype(numpy.float32))
        if name.endswith("lora_a"):
            values[name] = noise / tensor.shape[0] ** 0.5
        elif name.endswith("lora_b"):
            values[name] = noise * (0.15 / case.parameters["scale"])
        else:
            values[name] = tensor * (1.0 + 0.2 * noise)
    mx.eval(values)
    return values


def write_adapter(case, folder, values):
    """What `mlx_lm.lora --train` leaves behind when it resumes from these values and makes no step."""
    start = folder / "start.safetensors"
    mx.save_safetensors(str(start), values)
    model = load_base(case)
    settings = CONFIG_DEFAULTS | dict(
        model=f"models/{case.model}",
        train=True,
        fine_tune_type=case.kind,
        num_layers=min(case.layers, len(model.layers)),
        lora_parameters=dict(case.parameters),
        adapter_path=str(folder),
        resume_adapter_file=str(start),
        data="data",
        iters=0,
    )
    train_model(SimpleNamespace(**settings), model, train_set=[], valid_set=[])
    start.unlink()


def load_base(case):
    return load_model(Path(f"models/{case.model}"))[0].eval()


def logits(model, ids):
    model.eval()
    rows = model(ids[None])[0]
    mx.eval(rows)
    assert rows.dtype == mx.float32
    return rows


def same(left, right):
    return left.keys() == right.keys() and all(mx.array_equal(left[name], right[name]).item() for name in left)


if __name__ == "__main__":
    main()
