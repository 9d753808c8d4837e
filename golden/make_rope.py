"""Makes golden/rope.json: inverse frequencies as transformers computes them, for every kind of scaling.

    python golden/make_rope.py

Each case is a config.json as it would lie on a hub, a sequence length, and the table that transformers uses when the
longest position is the length minus one.
"""

import json
import os
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_VERBOSITY"] = "error"

import torch
from transformers import AutoConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding
from transformers.models.phi3.modeling_phi3 import Phi3RotaryEmbedding

LLAMA = {
    "model_type": "llama",
    "vocab_size": 131,
    "hidden_size": 128,
    "intermediate_size": 52,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4096,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-05,
    "tie_word_embeddings": False,
    "rope_theta": 10000.0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": None,
}
PHI3 = LLAMA | {
    "model_type": "phi3",
    "max_position_embeddings": 131072,
    "original_max_position_embeddings": 4096,
}
NEW_LAYOUT = {key: value for key, value in LLAMA.items() if key != "rope_theta"}
DYNAMIC = LLAMA | {"rope_scaling": {"type": "dynamic", "factor": 4.0}}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 1024}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def longrope(pairs):
    return {
        "type": "longrope",
        "short_factor": [1.0 + 0.05 * pair for pair in range(pairs)],
        "long_factor": [1.0 + 0.75 * pair for pair in range(pairs)],
    }


def scaled(scaling, **more):
    return LLAMA | {"rope_scaling": scaling} | more


CASES = [
    ("default", LLAMA, 100),
    ("default, head_dim given, large theta", LLAMA | {"head_dim": 20, "rope_theta": 1000000.0}, 100),
    ("default, new layout", NEW_LAYOUT | {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0}}, 100),
    ("linear, new layout", NEW_LAYOUT | {"rope_parameters": {"rope_type": "linear", "rope_theta": 500.0, "factor": 2.0}}, 100),
    ("linear", scaled({"type": "linear", "factor": 2.5}), 100),
    ("dynamic, shorter than the original context", DYNAMIC, 100),
    ("dynamic, as long as the original context", DYNAMIC, 4096),
    ("dynamic, one token longer", DYNAMIC, 4097),
    ("dynamic, much longer", DYNAMIC, 12000),
    ("yarn", scaled(YARN), 100),
    ("yarn, not truncated", scaled(YARN | {"truncate": False}), 100),
    ("yarn, betas", scaled(YARN | {"beta_fast": 16.0, "beta_slow": 2.0}), 100),
    ("yarn, attention_factor", scaled(YARN | {"attention_factor": 0.75}), 100),
    ("yarn, mscale", scaled(YARN | {"mscale": 1.5, "mscale_all_dim": 0.75}), 100),
    ("yarn, mscale alone", scaled(YARN | {"mscale": 1.5}), 100),
    ("llama3", scaled(LLAMA3, rope_theta=500000.0, max_position_embeddings=131072), 100),
    ("llama3, factor 32", scaled(LLAMA3 | {"factor": 32.0}, rope_theta=500000.0, max_position_embeddings=131072), 9000),
    ("partial rotary", PHI3 | {"partial_rotary_factor": 0.75}, 100),
    ("longrope, short", PHI3 | {"rope_scaling": longrope(16)}, 4096),
    ("longrope, long", PHI3 | {"rope_scaling": longrope(16)}, 4097),
    ("longrope, attention_factor", PHI3 | {"rope_scaling": longrope(16) | {"attention_factor": 1.25}}, 100),
    ("longrope, partial rotary", PHI3 | {"partial_rotary_factor": 0.75, "rope_scaling": longrope(12)}, 5000),
]


def main():
    torch.set_num_threads(1)
    cases = [case(*arguments) for arguments in CASES]
    check_that_variants_differ(cases)
    path = Path(__file__).parent / "rope.json"
    lines = ",\n".join("  " + json.dumps(case) for case in cases)
    path.write_text(f"[\n{lines}\n]\n")
    print(f"{path.name}: {len(cases)} cases, {path.stat().st_size / 1e3:.1f} kB")


def case(name, config, length):
    parsed = AutoConfig.for_model(**json.loads(json.dumps(config)))
    rotary = {"llama": LlamaRotaryEmbedding, "phi3": Phi3RotaryEmbedding}[config["model_type"]](parsed)
    # The forward pass, because dynamic and longrope choose their table there.
    positions = torch.tensor([[0, length - 1]])
    cos, _ = rotary(torch.zeros(1), positions)
    assert torch.equal(cos[0, 0], torch.full_like(cos[0, 0], rotary.attention_scaling)), name
    return {
        "name": name,
        "config": config,
        "length": length,
        "inv_freq": rotary.inv_freq.tolist(),
        "attention_scaling": float(rotary.attention_scaling),
    }


def check_that_variants_differ(cases):
    """Only these agree: dynamic scaling has no effect inside the original context."""
    seen = {}
    for row in cases:
        table = (tuple(row["inv_freq"]), row["attention_scaling"])
        seen.setdefault(table, []).append(row["name"])
    alike = [names for names in seen.values() if len(names) > 1]
    assert alike == [
        ["default", "dynamic, shorter than the original context", "dynamic, as long as the original context"],
        ["yarn", "yarn, mscale alone"],
    ], alike


if __name__ == "__main__":
    main()
