//! Which part of the gradient belongs to which product of the model.

use std::collections::BTreeMap;

use candle_core::Tensor;

use super::{Parameters, TrainError, trainer::names};
use crate::{
    lora::{AdapterLayer, Module, Site},
    model::{
        spec::DecoderSpec,
        walk::{BlockGradients, Gradients, LoraSums, PartSums},
    },
};

/// The sums of an adapter. The parts of a fused module share its A.
pub(super) fn of_adapter(
    layers: &BTreeMap<Site, AdapterLayer>,
    parameters: &Parameters,
    spec: &DecoderSpec,
) -> Result<Gradients, TrainError> {
    let mut gradients = empty(spec);
    for (site, layer) in layers {
        let sum = |name: &String| parameters.gradient_of(parameters.index(name)?);
        let [a, b, magnitude] = names(*site);
        let (a, b) = (sum(&a)?, sum(&b)?);
        let magnitude = layer.magnitude.as_ref().map(|_| sum(&magnitude)).transpose()?;
        for (part, rows) in site.module.parts(spec, site.layer) {
            let cut = |tensor: &Tensor| tensor.narrow(0, rows.start, rows.len());
            let lora =
                LoraSums { a: a.clone(), b: cut(&b)?, magnitude: magnitude.as_ref().map(cut).transpose()? };
            let sums = PartSums { lora: Some(lora), ..PartSums::default() };
            gradients.blocks[site.layer].parts.insert(part, sums);
        }
    }
    Ok(gradients)
}

/// The sums of every weight.
pub(super) fn of_weights(parameters: &Parameters, spec: &DecoderSpec) -> Result<Gradients, TrainError> {
    let sum = |name: &str| parameters.gradient_of(parameters.index(name)?);
    let mut gradients = empty(spec);
    gradients.embedding = Some(sum("model.embed_tokens.weight")?);
    gradients.final_norm = Some(sum("model.norm.weight")?);
    if !spec.head.tied {
        gradients.head = Some(sum("lm_head.weight")?);
    }
    for place in spec.sites() {
        let Site { layer, module } = place.site;
        let attention = &spec.layers[layer].attention;
        let has_bias = match module {
            Module::Queries | Module::Keys | Module::Values | Module::QueriesKeysValues => {
                attention.input_bias
            }
            Module::Output => attention.output_bias,
            _ => spec.layers[layer].mlp.bias,
        };
        let weight = sum(&format!("{}.weight", place.site))?;
        let bias = if has_bias { Some(sum(&format!("{}.bias", place.site))?) } else { None };
        for (part, rows) in module.parts(spec, layer) {
            let cut = |tensor: &Tensor| tensor.narrow(0, rows.start, rows.len());
            let bias = bias.as_ref().map(cut).transpose()?;
            let sums = PartSums { lora: None, weight: Some(cut(&weight)?), bias };
            gradients.blocks[layer].parts.insert(part, sums);
        }
    }
    for (index, layer) in spec.layers.iter().enumerate() {
        let block = &mut gradients.blocks[index];
        let names = layer.norms.names().iter();
        let norms = names.map(|name| sum(&format!("model.layers.{index}.{name}.weight")));
        let [before_attention, after_attention, before_mlp, after_mlp] =
            layer.norms.place(norms.collect::<Result<Vec<_>, _>>()?);
        let parts = std::mem::take(&mut block.parts);
        let of_heads = |name: &str| sum(&format!("model.layers.{index}.self_attn.{name}.weight")).ok();
        *block = BlockGradients {
            parts,
            before_attention,
            after_attention,
            before_mlp,
            after_mlp,
            query_norm: of_heads("q_norm"),
            key_norm: of_heads("k_norm"),
        };
    }
    Ok(gradients)
}

fn empty(spec: &DecoderSpec) -> Gradients {
    let blocks = spec.layers.iter().map(|_| BlockGradients::default()).collect();
    Gradients { blocks, ..Gradients::default() }
}
