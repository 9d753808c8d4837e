//! The weights that training from nothing begins with.

use std::f64::consts::TAU;

use candle_core::{DType, Device, Tensor};
use rand_pcg::{Pcg64Mcg, rand_core::RngCore as _};

use super::{Weights, WeightsError};
use crate::{model::spec::DecoderSpec, random::seeded};

/// The deviation of most weights, as transformers has it (`initializer_range`).
const DEVIATION: f64 = 0.02;

impl Weights {
    /// Weights to train from: normal numbers, smaller ones where a block adds to the stream (as GPT-2 has it: divided by
    /// the root of how often that happens), norms that leave their input as it is, no biases. Each tensor has a generator of
    /// its own, seeded with `seed` and its name.
    pub fn initial(
        spec: &DecoderSpec,
        dtype: DType,
        device: &Device,
        seed: u64,
    ) -> Result<Weights, WeightsError> {
        let residual = DEVIATION / (2.0 * spec.layers.len() as f64).sqrt();
        let neutral = f64::from(1.0 - spec.norm.weight_offset);
        let made = spec.tensors().into_iter().map(|(name, shape)| {
            let values = match shape.as_slice() {
                [_] if name.ends_with("norm.weight") => Tensor::full(neutral as f32, shape, device)?,
                [_] => Tensor::zeros(shape, DType::F32, device)?,
                _ => {
                    let adds = name.ends_with("o_proj.weight") || name.ends_with("down_proj.weight");
                    let deviation = if adds { residual } else { DEVIATION };
                    let mut random = seeded(&[seed, hash(&name)]);
                    let count = shape.iter().product();
                    let values: Vec<f32> =
                        (0..count).map(|_| (deviation * normal(&mut random)) as f32).collect();
                    Tensor::from_vec(values, shape, device)?
                }
            };
            Ok((name, values.to_dtype(dtype)?))
        });
        made.collect()
    }
}

/// Box and Muller's method.
fn normal(random: &mut Pcg64Mcg) -> f64 {
    // 53 bits each; the logarithm's argument lies in (0, 1].
    let mut uniform = || (random.next_u64() >> 11) as f64 / (1u64 << 53) as f64;
    let radius = (-2.0 * (1.0 - uniform()).ln()).sqrt();
    radius * (TAU * uniform()).cos()
}

/// FNV-1a.
fn hash(text: &str) -> u64 {
    text.bytes().fold(0xCBF2_9CE4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01B3)
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::model::{Config, arch};

    #[test]
    fn weights_have_their_deviation_and_norms_do_nothing() {
        let config = br#"{
            "model_type": "qwen2", "vocab_size": 500, "hidden_size": 64, "intermediate_size": 128,
            "num_hidden_layers": 8, "num_attention_heads": 4, "num_key_value_heads": 2,
            "max_position_embeddings": 64, "rms_norm_eps": 1e-6, "hidden_act": "silu", "tie_word_embeddings": true
        }"#;
        let spec = arch::read(&Config::from_slice(config).unwrap(), &[]).unwrap();
        let make = |seed| Weights::initial(&spec, DType::F32, &Device::Cpu, seed).unwrap();
        let values = |weights: &mut Weights, name: &str| {
            weights.take(name).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap()
        };
        let deviation = |values: &[f32]| {
            (values.iter().map(|value| f64::from(value * value)).sum::<f64>() / values.len() as f64).sqrt()
        };
        let mut weights = make(1);
        let embedding = values(&mut weights, "model.embed_tokens.weight");
        assert!((deviation(&embedding) / 0.02 - 1.0).abs() < 0.03);
        let down = values(&mut weights, "model.layers.3.mlp.down_proj.weight");
        assert!((deviation(&down) / 0.005 - 1.0).abs() < 0.05);
        assert_eq!(values(&mut weights, "model.norm.weight"), [1.0; 64]);
        assert_eq!(values(&mut weights, "model.layers.0.self_attn.q_proj.bias"), [0.0; 64]);
        assert_eq!(values(&mut make(1), "model.embed_tokens.weight"), embedding);
        assert_ne!(values(&mut make(2), "model.embed_tokens.weight"), embedding);
        assert_ne!(
            values(&mut weights, "model.layers.0.mlp.up_proj.weight"),
            values(&mut weights, "model.layers.1.mlp.up_proj.weight")
        );
    }
}
