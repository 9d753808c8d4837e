"""The tiny models of golden/models: shapes that are odd on purpose, and the settings that must show in the logits."""

from dataclasses import dataclass, field

import torch


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
    spread: float = 0.2  # standard deviation of the weights
    shard_size: str | None = None
    prompts: dict = field(default_factory=lambda: {"": 23})  # suffix of the tensor names → prompt length
    cached_equals_uncached: bool = True
    # Settings that must act: replacing them has to change the logits.
    ablations: tuple = ()


def rope(theta=10000.0, kind="default", **more):
    return {"rope_type": kind, "rope_theta": theta, **more}


# Holds for every model, unless its settings say otherwise.
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
        LLAMA3
        | {
            "vocab_size": 101,
            "num_key_value_heads": 1,
            "attention_bias": True,
            "mlp_bias": True,
            "tie_word_embeddings": True,
        },
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
        spread=0.1,  # sharper attention would amplify the reference's own rounding
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
            "vocab_size": 131,
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
