"""Loads what this program has written in PEFT, mlx-lm and transformers, and compares logits.

    python golden/check_adapters.py --base MODEL --logits LOGITS --peft FOLDER     # with golden/requirements.txt
    python golden/check_adapters.py --base MODEL --logits LOGITS --mlx FOLDER      # with golden/requirements-mlx.txt
    python golden/check_adapters.py --logits LOGITS --merged FOLDER

LOGITS is either JSON, `{"prompts": [{"ids": [1, 2], "logits": [[..], [..]]}]}` with one row of logits per token, or a
safetensors file with `ids_0`, `logits_0`, `ids_1` .. as in golden/training. Without logits in it they are printed instead of
compared. Every tensor of the files has to be used, and none may be missing. Everything is computed in f32 on the CPU.
The exit status is 1 if something differs.
"""

import argparse
import json
import os
import sys
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_VERBOSITY"] = "error"

import numpy
from safetensors import safe_open


def main():
    options = parse_options()
    prompts = read_prompts(options.logits)
    checks = {"PEFT": (peft, options.peft), "mlx-lm": (mlx, options.mlx), "transformers": (merged, options.merged)}
    passed = True
    for program, (load, folder) in checks.items():
        if folder:
            forward = load(options.base, folder)
            print(f"{program}: {folder}: every tensor is used")
            results = [compare(program, forward, index, *prompt, options.tolerance) for index, prompt in enumerate(prompts)]
            passed &= all(results)
    sys.exit(0 if passed else 1)


def parse_options():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", type=Path, help="folder of the model that the adapters belong to")
    parser.add_argument("--logits", type=Path, required=True, help="token ids and our logits, JSON or safetensors")
    parser.add_argument("--peft", type=Path, help="adapter folder in PEFT's form")
    parser.add_argument("--mlx", type=Path, help="adapter folder in mlx-lm's form")
    parser.add_argument("--merged", type=Path, help="model folder with the adapter merged into its weights")
    parser.add_argument("--tolerance", type=float, default=1e-5, help="part of the largest logit; bf16 files need 2e-2")
    options = parser.parse_args()
    if not (options.peft or options.mlx or options.merged):
        parser.error("nothing to check: give --peft, --mlx or --merged")
    if (options.peft or options.mlx) and not options.base:
        parser.error("--peft and --mlx need --base")
    return options


def read_prompts(path):
    """Pairs of ids and logits; None where there are no logits."""
    if path.suffix == ".json":
        prompts = json.loads(path.read_text())["prompts"]
        return [(prompt["ids"], numpy.array(prompt["logits"]) if "logits" in prompt else None) for prompt in prompts]
    with safe_open(path, "numpy") as file:
        count = sum(name.startswith("ids_") for name in file.keys())
        return [(file.get_tensor(f"ids_{index}").tolist(), file.get_tensor(f"logits_{index}")) for index in range(count)]


def compare(program, forward, index, ids, ours, tolerance):
    theirs = forward(ids)
    if ours is None:
        print(json.dumps({"program": program, "ids": ids, "logits": theirs.tolist()}))
        return True
    if ours.shape != theirs.shape:
        print(f"{program}: prompt {index}: {theirs.shape} logits, ours are {ours.shape}")
        return False
    error = abs(theirs - ours).max() / abs(theirs).max()
    passed = bool(error <= tolerance)
    verdict = "" if passed else f", more than {tolerance:.1e}"
    print(f"{program}: prompt {index}, {len(ids)} tokens: {error:.1e} of the largest logit{verdict}")
    return passed


def peft(base, folder):
    from peft import PeftModel, get_peft_model_state_dict

    model = PeftModel.from_pretrained(transformers_model(base), folder)
    with safe_open(folder / "adapter_model.safetensors", "numpy") as file:
        # PEFT reads magnitudes by either name and writes the shorter one.
        found = [name.removesuffix(".weight") if "magnitude" in name else name for name in file.keys()]
        require_same_names(get_peft_model_state_dict(model, save_embedding_layers=False), found, folder)
    return torch_forward(model)


def merged(_, folder):
    return torch_forward(transformers_model(folder))


def transformers_model(folder):
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    settings = dict(dtype=torch.float32, attn_implementation="eager", output_loading_info=True)
    model, report = AutoModelForCausalLM.from_pretrained(folder, **settings)
    problems = {kind: sorted(names) for kind, names in report.items() if names}
    if problems:
        sys.exit(f"{folder}: {problems}")
    return model


def torch_forward(model):
    import torch

    model.eval()

    @torch.no_grad()
    def forward(ids):
        return model(input_ids=torch.tensor([ids]), use_cache=False).logits[0].numpy()

    return forward


def mlx(base, folder):
    import mlx.core as mx
    from mlx.utils import tree_flatten
    from mlx_lm.tuner.utils import load_adapters
    from mlx_lm.utils import load_model

    mx.set_default_device(mx.cpu)
    model = load_model(base)[0]
    model.set_dtype(mx.float32)
    load_adapters(model, str(folder))
    names = [name for name, _ in tree_flatten(model.parameters())]
    adapter = [name for name in names if name.rsplit(".", 1)[-1] in ("lora_a", "lora_b", "m")]
    # mlx-lm says nothing about tensors that a file lacks.
    require_same_names(adapter, mx.load(str(folder / "adapters.safetensors")), folder)
    model.eval()
    return lambda ids: numpy.array(model(mx.array([ids]))[0])


def require_same_names(expected, found, folder):
    missing, unused = sorted(set(expected) - set(found)), sorted(set(found) - set(expected))
    if missing or unused:
        sys.exit(f"{folder}: missing: {missing}; not used: {unused}")


if __name__ == "__main__":
    main()
