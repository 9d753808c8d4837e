"""Makes golden/training: what PyTorch and PEFT compute when they train adapters of the models in golden/models.

    pip install -r golden/requirements.txt
    python golden/make_training.py                    # all of them
    python golden/make_training.py qwen3-dora qwen3-full   # only these

Everything expected is computed in f64, also where transformers asks for f32 (norms, softmax, rotary tables), and rounded to
f32 when it is stored: the reference has no rounding of its own. The same in plain f32 must agree with a margin, or the next
seed is drawn; so a comparison in f32 can meet the tolerances. README.md explains the files.
"""

import json
import os
import shutil
import sys
import zlib
from dataclasses import dataclass, field
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_VERBOSITY"] = "error"

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch.nn.functional import cross_entropy
from torch.overrides import TorchFunctionMode
from transformers import AutoModelForCausalLM, get_cosine_schedule_with_warmup
from transformers.utils.logging import disable_progress_bar

GOLDEN = Path(__file__).resolve().parent
LENGTHS = [23, 9, 14]
IGNORED = -100
STEPS = 10
ADAMW = dict(lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.01)
WARM_UP_STEPS = 3
# The adapter must change the logits by this part of the largest one, and training must change the loss.
SMALLEST_EFFECT = 0.05
# What f32 may differ from f64, as a part of the largest value of a tensor: a quarter of what a test allows.
MOST_NOISE = {"logits": 5e-6, "gradients": 2.5e-5, "steps": 2.5e-6}

ALL_LINEAR = "all-linear"
QUERY_VALUE = ["q_proj", "v_proj"]
SEVEN = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


@dataclass
class Case:
    name: str
    model: str
    settings: dict = field(default_factory=dict)  # of LoraConfig; none: every weight of the model is trained
    clipped: bool = False  # also ten steps with clipped gradients and a warm-up

    def base(self):
        return Path("models") / self.model


CASES = [
    Case("llama3-lora", "llama3", dict(r=4, lora_alpha=6, target_modules=QUERY_VALUE)),
    Case("llama3-rslora", "llama3", dict(r=3, lora_alpha=4, target_modules=ALL_LINEAR, use_rslora=True)),
    Case(
        "llama3-dora",
        "llama3",
        dict(
            r=4,
            lora_alpha=6,
            target_modules=SEVEN,
            use_dora=True,
            rank_pattern={"k_proj": 2, "layers.1.mlp.down_proj": 5},
            alpha_pattern={"k_proj": 5, "layers.0.self_attn.o_proj": 3},
        ),
    ),
    Case("qwen2-lora", "qwen2", dict(r=3, lora_alpha=5, target_modules=ALL_LINEAR)),
    Case(
        "qwen2-rslora",
        "qwen2",
        dict(
            r=4,
            lora_alpha=5,
            target_modules=SEVEN,
            use_rslora=True,
            rank_pattern={"q_proj": 2, "layers.1.mlp.up_proj": 6},
            alpha_pattern={"layers.0.mlp.gate_proj": 9, "v_proj": 2},
        ),
    ),
    Case("qwen2-dora", "qwen2", dict(r=5, lora_alpha=7, target_modules=QUERY_VALUE, use_dora=True)),
    Case(
        "qwen3-lora",
        "qwen3",
        dict(
            r=4,
            lora_alpha=8,
            target_modules=SEVEN,
            rank_pattern={"v_proj": 6, "layers.0.self_attn.q_proj": 3},
            alpha_pattern={"down_proj": 3, "layers.1.self_attn.v_proj": 10},
        ),
        clipped=True,
    ),
    Case("qwen3-rslora", "qwen3", dict(r=6, lora_alpha=4, target_modules=QUERY_VALUE, use_rslora=True)),
    Case("qwen3-dora", "qwen3", dict(r=3, lora_alpha=5, target_modules=ALL_LINEAR, use_dora=True)),
    # `target_modules` as an expression that the whole name of a module has to match.
    Case("gemma2-lora", "gemma2", dict(r=4, lora_alpha=6, target_modules=r".*\.(o_proj|up_proj|down_proj)")),
    Case(
        "gemma2-rslora",
        "gemma2",
        dict(r=3, lora_alpha=4, target_modules=SEVEN, use_rslora=True, layers_to_transform=[1, 2]),
    ),
    Case("gemma2-dora", "gemma2", dict(r=3, lora_alpha=5, target_modules=["k_proj", "gate_proj"], use_dora=True)),
    Case("llama3-full", "llama3"),
    Case("qwen3-full", "qwen3"),
]


def main():
    os.chdir(GOLDEN)  # PEFT writes the model's path, as it was given, into adapter_config.json
    disable_progress_bar()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    wanted = sys.argv[1:]
    unknown = set(wanted) - {case.name for case in CASES}
    if unknown:
        sys.exit(f"no such case: {', '.join(sorted(unknown))}")
    for case in CASES:
        if not wanted or case.name in wanted:
            make(case)
    total = sum(path.stat().st_size for path in Path("training").rglob("*") if path.is_file())
    print(f"{'total':16} {total / 1e6:8.3f} MB")


def make(case):
    """Writes one folder, with the first seed whose numbers f32 can reproduce."""
    folder = Path("training") / case.name
    problems = []
    for attempt in range(200):
        seed = zlib.crc32(case.name.encode()) + attempt
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        batch = draw_batch(seed)
        if case.settings:
            write_adapter(case, folder, seed)
        with InDoublePrecision():
            expected = reference(case, folder, batch, torch.float64)
        rough = reference(case, folder, batch, torch.float32)
        problem, noise = compare(expected, rough)
        problem = problem or adapter_without_effect(case, batch, expected)
        if not problem:
            break
        problems.append(problem)
    else:
        sys.exit(f"{case.name}: no good seed: {problems[-3:]}")
    tensors = batch_tensors(batch) | {name: tensor.float().contiguous() for name, tensor in expected.items()}
    save_file(tensors, folder / "expected.safetensors")
    size = sum(path.stat().st_size for path in folder.iterdir())
    print(f"{case.name:16} {size / 1e6:8.3f} MB   seed +{attempt}   f32 differs by {noise}", flush=True)


class InDoublePrecision(TorchFunctionMode):
    """Computes in f64 what a model's code converts to f32 by name."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        def widened(value):
            return torch.float64 if value is torch.float32 else value

        if function in (torch.frombuffer, torch.Tensor.view):
            return function(*args, **(kwargs or {}))  # a file's bytes are what they are
        if function is torch.Tensor.float:
            function = torch.Tensor.double
        args = [widened(value) for value in args]
        return function(*args, **{key: widened(value) for key, value in (kwargs or {}).items()})


def draw_batch(seed):
    """Sequences of unequal length, as (ids, targets): `targets[i]` is the token after `ids[i]`, or ignored."""
    generator = torch.Generator().manual_seed(seed)
    batch = []
    for index, length in enumerate(LENGTHS):
        ids = torch.randint(0, 100, (length,), generator=generator)
        targets = torch.cat([ids[1:], torch.tensor([IGNORED])])
        if index == 0:
            targets[:6] = IGNORED  # like a prompt
        if index == 2:
            targets[torch.rand(length, generator=generator) < 0.3] = IGNORED  # like the turns of a conversation
        batch.append((ids, targets))
    return batch


def batch_tensors(batch):
    ids = {f"ids_{index}": ids for index, (ids, _) in enumerate(batch)}
    return ids | {f"targets_{index}": targets for index, (_, targets) in enumerate(batch)}


def write_adapter(case, folder, seed):
    """A folder by PEFT's own `save_pretrained`, with values that no initialisation gives."""
    torch.manual_seed(seed)
    config = LoraConfig(lora_dropout=0.0, bias="none", task_type="CAUSAL_LM", **case.settings)
    model = get_peft_model(load_base(case.base(), torch.float32), config)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            if "lora_A" in name:
                parameter.copy_(torch.randn(parameter.shape) / parameter.shape[1] ** 0.5)
            elif "lora_B" in name:
                parameter.copy_(torch.randn(parameter.shape) * 0.1)
            elif "lora_magnitude_vector" in name:
                parameter.mul_(1.0 + 0.2 * torch.randn(parameter.shape))
    model.save_pretrained(folder)
    (folder / "README.md").unlink(missing_ok=True)
    tidy_config(folder / "adapter_config.json")


def tidy_config(path):
    """PEFT writes sets in the order of the day."""
    config = json.loads(path.read_text())
    if isinstance(config["target_modules"], list):
        config["target_modules"].sort()
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def load_base(folder, dtype):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation="eager").eval()


def load_trained(base, folder, dtype):
    """The model with what is trained, and that by the name it has in a file. Without an adapter: every weight."""
    model = load_base(base, dtype)
    if not (folder / "adapter_config.json").exists():
        return model, dict(model.named_parameters())
    model = PeftModel.from_pretrained(model, folder, is_trainable=True, autocast_adapter_dtype=False).eval()
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    parameters = {name.replace(".default", ""): parameter for name, parameter in trained.items()}
    # named_parameters() calls the magnitude's tensor `weight`, as the file does not.
    parameters = {name.replace("vector.weight", "vector"): parameter for name, parameter in parameters.items()}
    stored = load_file(folder / "adapter_model.safetensors")
    assert stored.keys() == parameters.keys(), stored.keys() ^ parameters.keys()
    assert all(torch.equal(stored[name].to(dtype), parameter.detach()) for name, parameter in parameters.items())
    return model, parameters


def reference(case, folder, batch, dtype):
    """Everything that is compared, in `dtype`."""
    model, parameters = load_trained(case.base(), folder, dtype)
    values = [*model.parameters(), *model.buffers()]
    assert all(value.dtype == dtype for value in values if value.is_floating_point())
    loss = batch_loss(model, batch)
    loss.backward()
    result = {"loss": loss.detach()}
    result |= {f"gradient.{name}": parameter.grad.clone() for name, parameter in parameters.items()}
    result |= logits(model, batch, "logits")
    if not case.settings:
        return result
    result |= train(case, folder, batch, dtype, "steps")
    if case.clipped:
        norms = [tensor.norm() for name, tensor in result.items() if name.startswith("gradient.")]
        largest = 0.5 * torch.stack(norms).norm().item()
        result |= train(case, folder, batch, dtype, "clipped_steps", max_norm=round(largest, 3))
    return result | logits(load_trained(case.base(), folder, dtype)[0].merge_and_unload(), batch, "merged_logits")


def batch_loss(model, batch):
    """Sequence by sequence, without padding: the sum over all targets by their number in the whole batch."""
    count = sum(int((targets != IGNORED).sum()) for _, targets in batch)
    total = 0.0
    for ids, targets in batch:
        rows = model(input_ids=ids[None], use_cache=False).logits[0]
        total = total + cross_entropy(rows, targets, reduction="sum", ignore_index=IGNORED)
    return total / count


@torch.no_grad()
def logits(model, batch, name):
    rows = [model(input_ids=ids[None], use_cache=False).logits[0] for ids, _ in batch]
    return {f"{name}_{index}": tensor for index, tensor in enumerate(rows)}


def train(case, folder, batch, dtype, name, max_norm=None):
    """Ten steps on the same batch from the stored adapter; with `max_norm` also a warm-up and a cosine."""
    model, parameters = load_trained(case.base(), folder, dtype)
    optimizer = torch.optim.AdamW(parameters.values(), **ADAMW)
    schedule = get_cosine_schedule_with_warmup(optimizer, WARM_UP_STEPS, STEPS) if max_norm else None
    losses, norms, rates = [], [], []
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss = batch_loss(model, batch)
        loss.backward()
        losses.append(loss.detach())
        if max_norm:
            norms.append(torch.nn.utils.clip_grad_norm_(parameters.values(), max_norm))
            rates.append(schedule.get_last_lr()[0])
        optimizer.step()
        if max_norm:
            schedule.step()
    result = {f"{name}.{key}": parameter.detach().clone() for key, parameter in parameters.items()}
    result[f"{name}.losses"] = torch.stack(losses)
    if max_norm:
        assert all(norm > 1.2 * max_norm for norm in norms), f"{case.name}: clipping does not act: {norms}"
        result[f"{name}.norms"] = torch.stack(norms)
        result[f"{name}.learning_rates"] = torch.tensor(rates, dtype=dtype)
        result[f"{name}.max_norm"] = torch.tensor(max_norm, dtype=dtype)
    return result


def compare(expected, rough):
    """How far f32 is from f64, by kind; and why this is too much."""
    noise = dict.fromkeys(MOST_NOISE, 0.0)
    for name, tensor in expected.items():
        largest = tensor.abs().max()
        assert largest > 0, f"{name} is zero"
        error = ((rough[name].double() - tensor).abs().max() / largest).item()
        kind = "steps" if "steps." in name else "gradients" if name.startswith("gradient.") else "logits"
        noise[kind] = max(noise[kind], error)
    problem = ", ".join(f"{kind} {error:.1e}" for kind, error in noise.items() if error > MOST_NOISE[kind])
    return problem, ", ".join(f"{error:.1e} ({kind})" for kind, error in noise.items())


def adapter_without_effect(case, batch, expected):
    if not case.settings:
        return None
    with InDoublePrecision():
        base = logits(load_base(case.base(), torch.float64), batch, "logits")
    for name, plain in base.items():
        effect = (expected[name] - plain).abs().max() / plain.abs().max()
        if effect < SMALLEST_EFFECT:
            return f"the adapter changes {name} by only {effect:.1e}"
    if expected["steps.losses"][-1] > expected["steps.losses"][0] - 0.01:
        return "training does not lower the loss"
    for index in range(len(batch)):
        merged, apart = expected[f"merged_logits_{index}"], expected[f"logits_{index}"]
        torch.testing.assert_close(merged, apart, rtol=0.0, atol=1e-9)
    return None


if __name__ == "__main__":
    main()
