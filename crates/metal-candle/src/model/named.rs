//! The weights of a model under the names that its files give them.

use candle_core::Tensor;

use super::{Model, decoder::Block, spec::NormPlacement};
use crate::lora::Site;

impl Model {
    /// Every weight, in the order of the forward pass. Modules that the model keeps in parts are put together again; the
    /// others share their memory with the model.
    pub fn weights(&self) -> candle_core::Result<Vec<(String, Tensor)>> {
        let mut named = vec![("model.embed_tokens.weight".to_owned(), self.embedding.clone())];
        for (layer, block) in self.blocks.iter().enumerate() {
            let norms = norms(block, self.spec.layers[layer].norms);
            let prefix = format!("model.layers.{layer}.");
            named.extend(norms.into_iter().map(|(name, weight)| (format!("{prefix}{name}.weight"), weight)));
        }
        for Site { layer, module } in self.spec.sites().into_iter().map(|place| place.site) {
            let parts = module.parts(&self.spec, layer);
            let parts: Vec<_> = parts.iter().map(|(part, _)| self.projection(layer, *part)).collect();
            let path = Site { layer, module }.path();
            let weights: Vec<&Tensor> = parts.iter().map(|part| &part.weight).collect();
            named.push((format!("{path}.weight"), joined(&weights)?));
            let biases: Vec<&Tensor> = parts.iter().filter_map(|part| part.bias.as_ref()).collect();
            if !biases.is_empty() {
                named.push((format!("{path}.bias"), joined(&biases)?));
            }
        }
        named.push(("model.norm.weight".to_owned(), self.final_norm.weight.clone()));
        if !self.spec.head.tied {
            named.push(("lm_head.weight".to_owned(), self.head.weight.clone()));
        }
        Ok(named)
    }
}

/// The norms of a block, those on queries and keys as well.
fn norms(block: &Block, placement: NormPlacement) -> Vec<(String, Tensor)> {
    let Block { before_attention, after_attention, before_mlp, after_mlp, attention, .. } = block;
    let around = match placement {
        NormPlacement::Before => vec![before_attention, before_mlp],
        NormPlacement::After => vec![after_attention, after_mlp],
        NormPlacement::Around => vec![before_attention, after_attention, before_mlp, after_mlp],
    };
    let around = placement.names().iter().copied().zip(around);
    let heads = [("self_attn.q_norm", &attention.query_norm), ("self_attn.k_norm", &attention.key_norm)];
    let all = around.chain(heads);
    all.filter_map(|(name, norm)| Some((name.to_owned(), norm.as_ref()?.weight.clone()))).collect()
}

fn joined(parts: &[&Tensor]) -> candle_core::Result<Tensor> {
    match parts {
        [whole] => Ok((*whole).clone()),
        parts => Tensor::cat(parts, 0),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use candle_core::{DType, Device};

    use super::*;
    use crate::model::{Config, arch, weights::Weights};

    #[test]
    fn names_shapes_and_values_are_those_of_the_files() {
        let shape = r#""vocab_size": 40, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
            "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 64, "rms_norm_eps": 1e-6"#;
        for own in [
            r#""model_type": "qwen2", "hidden_act": "silu", "tie_word_embeddings": true"#,
            r#""model_type": "qwen3", "head_dim": 8, "hidden_act": "silu", "tie_word_embeddings": false"#,
            r#""model_type": "phi3", "hidden_act": "silu", "tie_word_embeddings": false"#,
            r#""model_type": "olmo2", "hidden_act": "silu", "tie_word_embeddings": false"#,
            r#""model_type": "gemma2", "head_dim": 8, "hidden_activation": "gelu_pytorch_tanh",
               "query_pre_attn_scalar": 8, "sliding_window": 32, "tie_word_embeddings": true"#,
        ] {
            let config = format!("{{{own}, {shape}}}");
            let spec = arch::read(&Config::from_slice(config.as_bytes()).unwrap(), &[]).unwrap();
            let make = || Weights::random(&spec.tensors(), DType::F32, &Device::Cpu, 3).unwrap();
            let model = Model::new(spec.clone(), make(), &Device::Cpu).unwrap();
            let mut found = model.weights().unwrap();
            let mut expected = spec.tensors();
            expected.sort();
            found.sort_by(|left, right| left.0.cmp(&right.0));
            let shapes: Vec<_> =
                found.iter().map(|(name, weight)| (name.clone(), weight.dims().to_vec())).collect();
            assert_eq!(shapes, expected, "{own}");
            let mut original = make();
            for (name, weight) in found {
                let flat = |tensor: Tensor| tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap();
                assert_eq!(flat(weight), flat(original.take(&name).unwrap()), "{own}: {name}");
            }
        }
    }
}
