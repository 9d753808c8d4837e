//! The shapes of well-known models, as their `config.json` gives them: `bench` fills them with random weights.

use anyhow::{Result, anyhow};
use metal_candle::model::{Config, arch, spec::DecoderSpec};
use serde_json::{Value, json};

/// The names that `--shape` knows.
pub(crate) const NAMES: [&str; 6] =
    ["qwen2.5-0.5b", "qwen2.5-1.5b", "qwen3-0.6b", "llama-3.2-1b", "llama-3.1-8b", "tiny"];

/// The spec of a shape, through the same reader as any model's.
pub(crate) fn spec(name: &str) -> Result<DecoderSpec> {
    let config =
        config(name).ok_or_else(|| anyhow!("there is no shape {name}; known: {}", NAMES.join(", ")))?;
    let config = Config::from_slice(config.to_string().as_bytes())?;
    Ok(arch::read(&config, &[])?)
}

fn config(name: &str) -> Option<Value> {
    Some(match name {
        "qwen2.5-0.5b" => qwen2(896, 4864, 24, (14, 2)),
        "qwen2.5-1.5b" => qwen2(1536, 8960, 28, (12, 2)),
        "qwen3-0.6b" => json!({
            "model_type": "qwen3", "vocab_size": 151_936, "hidden_size": 1024, "intermediate_size": 3072,
            "num_hidden_layers": 28, "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 128,
            "max_position_embeddings": 40_960, "rope_theta": 1e6, "rms_norm_eps": 1e-6, "hidden_act": "silu",
            "attention_bias": false, "tie_word_embeddings": true,
        }),
        "llama-3.2-1b" => llama3(2048, 8192, 16, 32.0, true),
        "llama-3.1-8b" => llama3(4096, 14_336, 32, 8.0, false),
        "tiny" => json!({
            "model_type": "qwen3", "vocab_size": 320, "hidden_size": 64, "intermediate_size": 128,
            "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
            "max_position_embeddings": 4096, "rope_theta": 1e4, "rms_norm_eps": 1e-6, "hidden_act": "silu",
            "attention_bias": false, "tie_word_embeddings": true,
        }),
        _ => return None,
    })
}

fn qwen2(hidden: usize, intermediate: usize, layers: usize, (heads, kv_heads): (usize, usize)) -> Value {
    json!({
        "model_type": "qwen2", "vocab_size": 151_936, "hidden_size": hidden, "intermediate_size": intermediate,
        "num_hidden_layers": layers, "num_attention_heads": heads, "num_key_value_heads": kv_heads,
        "max_position_embeddings": 32_768, "rope_theta": 1e6, "rms_norm_eps": 1e-6, "hidden_act": "silu",
        "tie_word_embeddings": true,
    })
}

fn llama3(hidden: usize, intermediate: usize, layers: usize, rope_factor: f64, tied: bool) -> Value {
    json!({
        "model_type": "llama", "vocab_size": 128_256, "hidden_size": hidden, "intermediate_size": intermediate,
        "num_hidden_layers": layers, "num_attention_heads": 32, "num_key_value_heads": 8,
        "max_position_embeddings": 131_072, "rope_theta": 5e5, "rms_norm_eps": 1e-5, "hidden_act": "silu",
        "rope_scaling": {
            "rope_type": "llama3", "factor": rope_factor, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        },
        "tie_word_embeddings": tied,
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn shapes_have_the_published_number_of_parameters() {
        let published = [
            ("qwen2.5-0.5b", 494_032_768),
            ("qwen2.5-1.5b", 1_543_714_304),
            ("qwen3-0.6b", 596_049_920),
            ("llama-3.2-1b", 1_235_814_400),
            ("llama-3.1-8b", 8_030_261_248),
        ];
        for (name, parameters) in published {
            assert_eq!(spec(name).unwrap().parameters(), parameters, "{name}");
        }
        for name in NAMES {
            assert!(spec(name).is_ok(), "{name}");
        }
    }
}
