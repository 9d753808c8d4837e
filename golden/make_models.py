"""Makes golden/models: tiny random checkpoints and what transformers computes with them.

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
from dataclasses import dataclass, field
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_VERBOSITY"] = "error"

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.utils.logging import disable_progress_bar

MODELS = Path(__file__).parent / "models"
GREEDY_STEPS = 32
SMALLEST_GAP = 1e-3  # between best and second logit, relative to the largest logit
FEWEST_DISTINCT = 6  # greedy tokens: a path that repeats one token would prove little
SMALLEST_EFFECT = 1e-2  # of an ablated setting on the logits, relative to the largest logit


@dataclass
class Variant:
    """One folder under golden/models."""

    name: str
    model_type: str
    settings: dict
    layout: str = "new"  # how config.json is written: "old" as on the hub before transformers 5, or "new"
    old_rope_key: str = "rope_type"  # older files say "type" inside rope_scaling
    drop: tuple = ()  # keys that real files of the old layout do not have
    extra: dict = field(default_factory=dict)  # keys that they have and transformers 5 would not write
    dtype: torch.dtype = torch.float32
    shard_size: str | None = None
    prompts: dict = field(default_factory=lambda: {"": 23})  # suffix of the tensor names → prompt length
    cached_equals_uncached: bool = True
    # Settings that must act: replacing them has to change the logits.
    ablations: tuple = ()


def rope(theta=10000.0, kind="default", **more):
    return {"rope_type": kind, "rope_theta": theta, **more}


BASE = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": None, "initializer_range": 0.2}

LLAMA3_ROPE = rope(
    500.0,
    "llama3",
    factor=8.0,
    low_freq_factor=1.0,
    high_freq_factor=4.0,
    original_max_position_embeddings=32,
)

LLAMA3 = {
    "vocab_size": 157,
    "hidden_size": 40,
    "intermediate_size": 52,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 12,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5,
    "rope_parameters": LLAMA3_ROPE,
}

QWEN2 = {
    "vocab_size": 131,
    "hidden_size": 56,
    "intermediate_size": 52,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "rope_parameters": rope(1000.0),
    "tie_word_embeddings": True,
}

VARIANTS = [
    Variant(
        "llama",
        "llama",
        {
            "vocab_size": 131,
            "hidden_size": 36,
            "intermediate_size": 52,
            "num_hidden_layers": 2,
            "num_attention_heads": 3,
            "max_position_embeddings": 64,
            "rms_norm_eps": 1e-5,
            "rope_parameters": rope(),
        },
        layout="old",
        drop=("num_key_value_heads", "head_dim", "attention_bias", "mlp_bias", "rope_theta"),
        ablations=({"rope_parameters": rope(100.0)},),
    ),
    Variant(
        "llama3",
        "llama",
        LLAMA3,
        layout="old",
        prompts={"": 40},
        ablations=({"rope_parameters": rope(500.0)},),
    ),
    Variant(
        "llama3-f16",
        "llama",
        LLAMA3,
        dtype=torch.float16,
        prompts={"": 40},
    ),
    Variant(
        "llama3-bias",
        "llama",
        LLAMA3 | {"num_key_value_heads": 1, "attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True},
        prompts={"": 40},
        ablations=({"rope_parameters": rope(500.0)}, {"attention_bias": False}, {"mlp_bias": False}),
    ),
    Variant(
        "llama-linear",
        "llama",
        {
            "vocab_size": 101,
            "hidden_size": 36,
            "intermediate_size": 44,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "max_position_embeddings": 64,
            "rope_parameters": rope(1000.0, "linear", factor=4.0),
        },
        layout="old",
        old_rope_key="type",
        ablations=({"rope_parameters": rope(1000.0)},),
    ),
    Variant(
        "llama-dynamic",
        "llama",
        {
            "vocab_size": 83,
            "hidden_size": 40,
            "intermediate_size": 52,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 16,
            "rope_parameters": rope(100.0, "dynamic", factor=4.0),
        },
        prompts={"": 23, "_short": 11},
        cached_equals_uncached=False,
        ablations=({"rope_parameters": rope(100.0)},),
    ),
    Variant(
        "llama-yarn",
        "llama",
        {
            "vocab_size": 97,
            "hidden_size": 44,
            "intermediate_size": 36,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 1,
            "head_dim": 12,
            "max_position_embeddings": 128,
            "rope_parameters": rope(
                100.0, "yarn", factor=4.0, original_max_position_embeddings=32, beta_fast=2.0, beta_slow=1.0
            ),
        },
        layout="old",
        old_rope_key="type",
        prompts={"": 40},
        ablations=({"rope_parameters": rope(100.0)}, {"rope_parameters": rope(100.0, "linear", factor=4.0)}),
    ),
    Variant(
        "mistral",
        "mistral",
        {
            "vocab_size": 157,
            "hidden_size": 44,
            "intermediate_size": 52,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 10,
            "max_position_embeddings": 128,
            "sliding_window": 8,
            "rope_parameters": rope(1000.0),
        },
        layout="old",
        shard_size="50KB",
        ablations=({"sliding_window": None}, {"sliding_window": 9}, {"sliding_window": 7}),
    ),
    Variant(
        "mistral-full",
        "mistral",
        {
            "vocab_size": 97,
            "hidden_size": 36,
            "intermediate_size": 44,
            "num_hidden_layers": 2,
            "num_attention_heads": 3,
            "num_key_value_heads": 3,
            "max_position_embeddings": 64,
            "sliding_window": None,
            "rope_parameters": rope(1000.0),
        },
    ),
    Variant(
        "qwen2",
        "qwen2",
        QWEN2,
        layout="old",
        drop=("layer_types",),
        # Files on the hub carry a window that is switched off: reading it anyway is a mistake worth catching.
        extra={"sliding_window": 8, "max_window_layers": 1},
        ablations=({"rope_parameters": rope(10.0)}, {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1}),
    ),
    Variant(
        "qwen2-bf16",
        "qwen2",
        QWEN2,
        dtype=torch.bfloat16,
        shard_size="30KB",
    ),
    Variant(
        "qwen2-window",
        "qwen2",
        QWEN2
        | {
            "vocab_size": 97,
            "num_hidden_layers": 3,
            "hidden_size": 40,
            "tie_word_embeddings": False,
            "use_sliding_window": True,
            "sliding_window": 8,
            "max_window_layers": 1,
        },
        layout="old",
        drop=("layer_types",),
        ablations=({"use_sliding_window": False}, {"max_window_layers": 0}, {"max_window_layers": 2}),
    ),
    Variant(
        "qwen3",
        "qwen3",
        {
            "vocab_size": 157,
            "hidden_size": 44,
            "intermediate_size": 52,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 14,
            "max_position_embeddings": 128,
            "rope_parameters": rope(1000.0),
            "tie_word_embeddings": True,
        },
        ablations=({"rope_parameters": rope(10.0)},),
    ),
    Variant(
        "gemma2",
        "gemma2",
        {
            "vocab_size": 101,
            "hidden_size": 40,
            "intermediate_size": 52,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 12,
            "max_position_embeddings": 128,
            "sliding_window": 8,
            "query_pre_attn_scalar": 20,
            "attn_logit_softcapping": 3.0,
            "final_logit_softcapping": 5.0,
            "rope_parameters": rope(1000.0),
        },
        layout="old",
        drop=("layer_types",),
        extra={"hidden_act": "gelu_pytorch_tanh"},
        ablations=(
            {"sliding_window": 9},
            {"query_pre_attn_scalar": 12},
            {"attn_logit_softcapping": None},
            {"final_logit_softcapping": None},
            {"layer_types": ["full_attention", "sliding_attention", "full_attention"]},
        ),
    ),
    Variant(
        "gemma3",
        "gemma3_text",
        {
            "vocab_size": 97,
            "hidden_size": 36,
            "intermediate_size": 44,
            "num_hidden_layers": 4,
            "num_attention_heads": 3,
            "num_key_value_heads": 1,
            "head_dim": 14,
            "max_position_embeddings": 128,
            "sliding_window": 8,
            "sliding_window_pattern": 3,
            "query_pre_attn_scalar": 20,
            "rope_parameters": {
                "full_attention": rope(5000.0, "linear", factor=4.0),
                "sliding_attention": rope(100.0),
            },
        },
        layout="old",
        drop=("layer_types",),
        ablations=(
            {"sliding_window": 9},
            {"query_pre_attn_scalar": 14},
            {"sliding_window_pattern": 4},
            {"rope_parameters": {"full_attention": rope(5000.0), "sliding_attention": rope(100.0)}},
            {"rope_parameters": {"full_attention": rope(100.0, "linear", factor=4.0), "sliding_attention": rope(100.0)}},
            {
                "rope_parameters": {
                    "full_attention": rope(5000.0, "linear", factor=4.0),
                    "sliding_attention": rope(100.0, "linear", factor=4.0),
                }
            },
        ),
    ),
    Variant(
        "gemma3-layers",
        "gemma3_text",
        {
            "vocab_size": 101,
            "hidden_size": 36,
            "intermediate_size": 44,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "num_key_value_heads": 4,
            "head_dim": 10,
            "max_position_embeddings": 128,
            "sliding_window": 8,
            "layer_types": ["full_attention", "sliding_attention", "sliding_attention"],
            "query_pre_attn_scalar": 10,
            "rope_parameters": {"full_attention": rope(5000.0), "sliding_attention": rope(100.0)},
        },
        ablations=({"layer_types": ["sliding_attention", "sliding_attention", "full_attention"]},),
    ),
    Variant(
        "phi3",
        "phi3",
        {
            "vocab_size": 131,
            "hidden_size": 40,
            "intermediate_size": 52,
            "num_hidden_layers": 2,
            "num_attention_heads": 5,
            "num_key_value_heads": 1,
            "max_position_embeddings": 64,
            "original_max_position_embeddings": 64,
            "sliding_window": 9,
            "rope_parameters": rope(1000.0, partial_rotary_factor=0.75),
        },
        layout="old",
        ablations=(
            {"sliding_window": None},
            {"rope_parameters": rope(1000.0)},
        ),
    ),
    Variant(
        "phi3-longrope",
        "phi3",
        {
            "vocab_size": 83,
            "hidden_size": 36,
            "intermediate_size": 44,
            "num_hidden_layers": 2,
            "num_attention_heads": 3,
            "num_key_value_heads": 3,
            "max_position_embeddings": 256,
            "original_max_position_embeddings": 56,
            "rope_parameters": rope(
                1000.0,
                "longrope",
                short_factor=[1.0, 1.05, 1.1, 1.3, 1.5, 2.0],
                long_factor=[1.2, 1.9, 2.6, 3.8, 4.5, 6.0],
                original_max_position_embeddings=56,
                partial_rotary_factor=1.0,
            ),
        },
        layout="old",
        old_rope_key="type",
        prompts={"": 61, "_short": 23},
        ablations=({"rope_parameters": rope(1000.0)},),
    ),
    Variant(
        "phi3-longrope-partial",
        "phi3",
        {
            "vocab_size": 83,
            "hidden_size": 40,
            "intermediate_size": 36,
            "num_hidden_layers": 2,
            "num_attention_heads": 5,
            "num_key_value_heads": 1,
            "max_position_embeddings": 128,
            "original_max_position_embeddings": 32,
            "tie_word_embeddings": True,
            "rope_parameters": rope(
                1000.0,
                "longrope",
                short_factor=[1.0, 1.1, 1.3],
                long_factor=[1.2, 2.6, 4.5],
                original_max_position_embeddings=32,
                partial_rotary_factor=0.75,
            ),
        },
        prompts={"": 35, "_crossing": 23},
        ablations=({"rope_parameters": rope(1000.0)},),
    ),
    Variant(
        "smollm3",
        "smollm3",
        {
            "vocab_size": 101,
            "hidden_size": 40,
            "intermediate_size": 44,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 128,
            # Not what no_rope_layer_interval would give: the list has to win.
            "no_rope_layers": [1, 0, 1],
            "rope_parameters": rope(1000.0),
        },
        layout="old",
        drop=("layer_types",),
        ablations=({"no_rope_layers": [1, 1, 1]}, {"no_rope_layers": [1, 1, 0]}, {"no_rope_layers": [0, 0, 0]}),
    ),
    Variant(
        "smollm3-interval",
        "smollm3",
        {
            "vocab_size": 97,
            "hidden_size": 36,
            "intermediate_size": 44,
            "num_hidden_layers": 3,
            "num_attention_heads": 3,
            "num_key_value_heads": 1,
            "max_position_embeddings": 128,
            "no_rope_layer_interval": 2,
            "attention_bias": True,
            "tie_word_embeddings": False,
            "rope_parameters": rope(1000.0),
        },
        layout="old",
        drop=("layer_types", "no_rope_layers"),
        ablations=({"no_rope_layer_interval": 3}, {"attention_bias": False}),
    ),
    Variant(
        "olmo2",
        "olmo2",
        {
            "vocab_size": 97,
            "hidden_size": 40,
            "intermediate_size": 52,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 128,
            "rope_parameters": rope(1000.0),
        },
    ),
    Variant(
        "granite",
        "granite",
        {
            "vocab_size": 157,
            "hidden_size": 36,
            "intermediate_size": 52,
            "num_hidden_layers": 2,
            "num_attention_heads": 3,
            "num_key_value_heads": 1,
            "max_position_embeddings": 128,
            "embedding_multiplier": 3.5,
            "logits_scaling": 1.7,
            "residual_multiplier": 0.6,
            "attention_multiplier": 0.21,
            "tie_word_embeddings": True,
            "rope_parameters": rope(1000.0),
        },
        ablations=(
            {"embedding_multiplier": 1.0},
            {"logits_scaling": 1.0},
            {"residual_multiplier": 1.0},
            {"attention_multiplier": 1.0},
        ),
    ),
]


def main():
    disable_progress_bar()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    wanted = sys.argv[1:]
    unknown = set(wanted) - {variant.name for variant in VARIANTS}
    if unknown:
        sys.exit(f"no such model: {', '.join(sorted(unknown))}")
    for variant in VARIANTS:
        if not wanted or variant.name in wanted:
            make(variant)
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
    size = sum(path.stat().st_size for path in folder.iterdir())
    print(f"{variant.name:24} {size / 1e6:8.3f} MB   seed +{attempt}", flush=True)


def write_checkpoint(variant, folder, seed):
    config = AutoConfig.for_model(variant.model_type, **(BASE | copy_of(variant.settings)))
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    randomize(model, seed)
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


def randomize(model, seed):
    """Weights large enough that each of them shows in the logits."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            noise = torch.randn(parameter.shape, generator=generator) * 0.2
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
    # A fresh model each time: dynamic RoPE remembers the longest sequence that it has seen.
    logits = forward(load(folder, torch.float32), prompt)
    crossing = crosses_a_rope_switch(variant, length)
    greedy, greedy_logits = greedy_path(load(folder, torch.float32), prompt, use_cache=not crossing)
    if crossing:
        generated = generate(load(folder, torch.float32), prompt)
        assert torch.equal(generated, greedy), f"{variant.name}: generate() takes another path"

    top = greedy_logits.topk(2, dim=-1).values
    gap = ((top[:, 0] - top[:, 1]) / greedy_logits.abs().amax(dim=-1)).min().item()
    if gap < SMALLEST_GAP:
        return None, f"near tie: {gap:.1e}"
    if len(set(greedy.tolist())) < FEWEST_DISTINCT:
        return None, "the greedy path repeats itself"
    if variant.cached_equals_uncached:
        whole = forward(load(folder, torch.float32), torch.cat([prompt, greedy]))[length - 1 : -1]
        error = (whole - greedy_logits).abs().max() / greedy_logits.abs().max()
        assert error < 1e-5 or crossing, f"{variant.name}: cached ≠ uncached: {error}"

    tensors = {"prompt": prompt, "logits": logits, "greedy": greedy, "greedy_logits": greedy_logits}
    if variant.dtype != torch.float32:
        tensors["logits_native"] = forward(load(folder, variant.dtype), prompt).float()
    return {name: tensor.contiguous() for name, tensor in tensors.items()}, None


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
