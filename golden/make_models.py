"""Makes golden/models and rope.json: tiny random checkpoints and what transformers computes with them.

    pip install -r golden/requirements.txt
    python golden/make_models.py            # all of them
    python golden/make_models.py llama qwen2   # only these

Everything is deterministic. A model whose greedy path has a near tie is drawn again with the next seed, so that
an implementation that rounds differently still has to produce the same 32 tokens. README.md explains the files.
"""

import json
import os
import shutil
import sys
import zlib
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_VERBOSITY"] = "error"

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.utils.logging import disable_progress_bar

import make_rope
import tiny_chat
from variants import BASE, VARIANTS

MODELS = Path(__file__).parent / "models"
GREEDY_STEPS = 32
# Half of the tolerance: a comparison with rounded arithmetic must not spend it all on the reference's rounding.
MOST_NATIVE_NOISE = 1e-2
SMALLEST_GAP = 1e-3  # between best and second logit, relative to the largest logit
FEWEST_DISTINCT = 6  # greedy tokens: a path that repeats one token would prove little
SMALLEST_EFFECT = 1e-2  # of an ablated setting on the logits, relative to the largest logit


def main():
    disable_progress_bar()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    wanted = sys.argv[1:]
    unknown = set(wanted) - {variant.name for variant in VARIANTS} - {tiny_chat.NAME}
    if unknown:
        sys.exit(f"no such model: {', '.join(sorted(unknown))}")
    for variant in VARIANTS:
        if not wanted or variant.name in wanted:
            make(variant)
    if not wanted or tiny_chat.NAME in wanted:
        tiny_chat.make(MODELS / tiny_chat.NAME, clear_greedy_path)
        print_size(MODELS / tiny_chat.NAME)
    if not wanted:
        make_rope.main()
    total = sum(path.stat().st_size for path in MODELS.rglob("*") if path.is_file())
    print(f"{'total':24} {total / 1e6:8.3f} MB")


def make(variant):
    """Writes one folder, with the first seed whose greedy paths are clear."""
    folder = MODELS / variant.name
    problems = []
    for attempt in range(200):
        seed = zlib.crc32(variant.name.encode()) + attempt
        shutil.rmtree(folder, ignore_errors=True)
        write_checkpoint(variant, folder, seed)
        expected = {}
        problem = None
        for suffix, length in variant.prompts.items():
            tensors, problem = run_reference(variant, folder, length, seed)
            if problem:
                break
            expected |= {f"{name}{suffix}": tensor for name, tensor in tensors.items()}
        problem = problem or settings_without_effect(variant, folder, expected)
        if not problem:
            break
        problems.append(problem)
    else:
        sys.exit(f"{variant.name}: no good seed: {problems[-3:]}")
    save_file(expected, folder / "expected.safetensors")
    print_size(folder, f"seed +{attempt}")


def print_size(folder, note=""):
    size = sum(path.stat().st_size for path in folder.iterdir())
    print(f"{folder.name:24} {size / 1e6:8.3f} MB   {note}", flush=True)


def write_checkpoint(variant, folder, seed):
    config = AutoConfig.for_model(variant.model_type, **(BASE | copy_of(variant.settings)))
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    randomize(model, seed, variant.spread)
    model = model.to(variant.dtype)
    options = {"max_shard_size": variant.shard_size} if variant.shard_size else {}
    model.save_pretrained(folder, **options)
    sharded = (folder / "model.safetensors.index.json").exists()
    assert sharded == bool(variant.shard_size), f"{variant.name}: sharded is {sharded}"

    config_path = folder / "config.json"
    written = json.loads(config_path.read_text())
    if variant.layout == "old":
        written = old_layout(written, variant)
    write_json(config_path, written)
    write_json(folder / "generation_config.json", {"bos_token_id": 1, "eos_token_id": [2, 3], "do_sample": False})


def randomize(model, seed, spread):
    """Weights large enough that each of them shows in the logits."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            noise = torch.randn(parameter.shape, generator=generator) * spread
            kind = model.config.model_type
            is_gemma = kind.startswith("gemma")
            is_norm = parameter.dim() == 1 and not name.endswith("bias")
            if name == "model.norm.weight" and (is_gemma or kind == "granite"):
                # Scaled and tied embeddings would make every token predict itself; factors of both signs do not.
                noise = noise * 5.0 - (1.0 if is_gemma else 0.0)
            elif is_norm and not is_gemma:
                noise = noise + 1.0  # gemma multiplies by (1 + weight), the others by the weight itself
            parameter.copy_(noise)


def old_layout(config, variant):
    """What the same config looks like in files written before transformers 5."""
    config = dict(config)
    config["torch_dtype"] = config.pop("dtype")
    config["transformers_version"] = "4.51.3"
    parameters = config.pop("rope_parameters")
    if "full_attention" in parameters:
        config["rope_local_base_freq"] = parameters["sliding_attention"]["rope_theta"]
        parameters = parameters["full_attention"]
    parameters = dict(parameters)
    config["rope_theta"] = parameters.pop("rope_theta")
    if "partial_rotary_factor" in parameters:
        config["partial_rotary_factor"] = parameters.pop("partial_rotary_factor")
    kind = parameters.pop("rope_type")
    if variant.model_type == "phi3":
        parameters.pop("original_max_position_embeddings", None)  # these files have it at the top level
    config["rope_scaling"] = None if kind == "default" else {variant.old_rope_key: kind, **parameters}
    config |= variant.extra
    for key in variant.drop:
        config.pop(key, None)
    return dict(sorted(config.items()))


def run_reference(variant, folder, length, seed):
    """The prompt's logits and the greedy path, from the files as written; or why this seed will not do."""
    vocabulary = variant.settings["vocab_size"]
    generator = torch.Generator().manual_seed(seed + length)
    prompt = torch.randint(0, vocabulary, (length,), generator=generator)
    crossing = crosses_a_rope_switch(variant, length)
    tensors = reference(folder, prompt, use_cache=not crossing)
    problem = ambiguity(tensors)
    if problem:
        return None, problem
    greedy, greedy_logits = tensors["greedy"], tensors["greedy_logits"]
    if crossing:
        generated = generate(load(folder, torch.float32), prompt)
        assert torch.equal(generated, greedy), f"{variant.name}: generate() takes another path"
    if variant.cached_equals_uncached:
        whole = forward(load(folder, torch.float32), torch.cat([prompt, greedy]))[length - 1 : -1]
        error = (whole - greedy_logits).abs().max() / greedy_logits.abs().max()
        assert error < 1e-5 or crossing, f"{variant.name}: cached ≠ uncached: {error}"

    if variant.dtype != torch.float32:
        tensors["logits_native"] = forward(load(folder, variant.dtype), prompt).float()
        noise = (tensors["logits_native"] - tensors["logits"]).abs().max() / tensors["logits"].abs().max()
        if noise > MOST_NATIVE_NOISE:
            return None, f"the reference's own rounding is {noise:.1e}"
    return tensors, None


def reference(folder, prompt, use_cache):
    """What expected.safetensors holds. A fresh model each time: dynamic RoPE remembers the longest sequence."""
    logits = forward(load(folder, torch.float32), prompt)
    greedy, greedy_logits = greedy_path(load(folder, torch.float32), prompt, use_cache)
    return {"prompt": prompt, "logits": logits, "greedy": greedy, "greedy_logits": greedy_logits}


def ambiguity(tensors):
    """Why another correct implementation might take another greedy path, or why the path proves little."""
    top = tensors["greedy_logits"].topk(2, dim=-1).values
    gap = ((top[:, 0] - top[:, 1]) / tensors["greedy_logits"].abs().amax(dim=-1)).min().item()
    if gap < SMALLEST_GAP:
        return f"near tie: {gap:.1e}"
    if len(set(tensors["greedy"].tolist())) < FEWEST_DISTINCT:
        return "the greedy path repeats itself"
    return None


def clear_greedy_path(folder, prompt):
    tensors = reference(folder, prompt, use_cache=True)
    return None if ambiguity(tensors) else tensors


def crosses_a_rope_switch(variant, length):
    """longrope takes other factors beyond the original context; generate() then computes the whole cache again."""
    original = variant.settings["rope_parameters"].get("original_max_position_embeddings")
    is_longrope = variant.settings["rope_parameters"].get("rope_type") == "longrope"
    return is_longrope and length <= original < length + GREEDY_STEPS


def load(folder, dtype):
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation="eager")
    return model.eval()


@torch.no_grad()
def forward(model, ids):
    return model(input_ids=ids[None], use_cache=False).logits[0]


@torch.no_grad()
def greedy_path(model, prompt, use_cache):
    """Plain argmax; the end-of-text tokens count as any other."""
    tokens, rows = [], []
    ids, cache = prompt[None], None
    for _ in range(GREEDY_STEPS):
        output = model(input_ids=ids, past_key_values=cache, use_cache=use_cache)
        cache = output.past_key_values
        rows.append(output.logits[0, -1])
        tokens.append(rows[-1].argmax())
        newest = tokens[-1].reshape(1, 1)
        ids = newest if use_cache else torch.cat([ids, newest], dim=1)
    return torch.stack(tokens), torch.stack(rows)


def generate(model, prompt):
    model.generation_config.eos_token_id = None
    output = model.generate(prompt[None], attention_mask=torch.ones_like(prompt[None]), max_new_tokens=GREEDY_STEPS)
    return output[0, len(prompt) :]


def settings_without_effect(variant, folder, expected):
    """Names an ablation that leaves the logits as they are, and checks that the files hold the intended model."""
    weights = {}
    for path in sorted(folder.glob("model*.safetensors")):
        weights |= load_file(path)
    weights = {name: tensor.float() for name, tensor in weights.items()}
    intended = forward(build(variant, weights, {}), expected["prompt"])
    assert torch.equal(intended, expected["logits"]), f"{variant.name}: config.json reads back as another model"
    for ablation in variant.ablations:
        changed = forward(build(variant, weights, ablation), expected["prompt"])
        effect = (changed - intended).abs().max() / intended.abs().max()
        if effect < SMALLEST_EFFECT:
            return f"{ablation} changes the logits by only {effect:.1e}"
    return None


def build(variant, weights, overrides):
    """The model from the settings in this file, without config.json."""
    config = AutoConfig.for_model(variant.model_type, **(BASE | copy_of(variant.settings) | copy_of(overrides)))
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    missing, _ = model.load_state_dict(weights, strict=False)
    model.tie_weights()
    assert not missing or missing == ["lm_head.weight"], f"{variant.name}: missing {missing}"
    return model.eval()


def copy_of(settings):
    """transformers writes into the dicts that it is given."""
    return json.loads(json.dumps(settings))


def write_json(path, value):
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
