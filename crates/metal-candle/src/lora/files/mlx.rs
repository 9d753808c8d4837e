//! mlx-lm's folders: `adapter_config.json` and `adapters.safetensors`
//! (<https://github.com/ml-explore/mlx-lm/blob/main/mlx_lm/LORA.md>). Matrices are stored transposed, `scale` is the
//! multiplier itself, and blocks are counted from the last.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Range,
};

use candle_core::{DType, Tensor};
use metal_candle_kernels::lora::LoraAdapter;
use serde_json::{Map, Value, json};

use super::{
    SaveOptions, most_common,
    stored::{Blocks, Description, Factor},
};
use crate::lora::{Adapter, AdapterLayer, LoraError, Method, Module, Scaling, Site};

/// Reads a config, or lists all that stands in the way. Keys that only concern training are not looked at.
pub(super) fn describe(config: &Map<String, Value>) -> Result<Description, Vec<String>> {
    let mut problems = Vec::new();
    let kind = config.get("fine_tune_type").and_then(Value::as_str).unwrap_or("lora");
    // Before `fine_tune_type`, mlx-lm wrote `use_dora`.
    let is_dora = kind == "dora" || config.get("use_dora").and_then(Value::as_bool) == Some(true);
    if !["lora", "dora"].contains(&kind) {
        problems.push(format!(
            "`fine_tune_type` is \"{kind}\": this is not an adapter, expected \"lora\" or \"dora\""
        ));
    }
    let layers = config.get("num_layers").or_else(|| config.get("lora_layers")).and_then(Value::as_i64);
    if layers.is_none() {
        problems.push("`num_layers` must be a whole number".to_owned());
    }
    let nothing = Map::new();
    let parameters = config.get("lora_parameters").and_then(Value::as_object);
    if parameters.is_none() {
        problems.push("`lora_parameters` must hold rank, scale and dropout".to_owned());
    }
    let parameters = parameters.unwrap_or(&nothing);
    for key in parameters.keys().filter(|key| !["rank", "scale", "dropout", "keys"].contains(&key.as_str())) {
        let hint = if key == "alpha" { "; mlx-lm wants `scale`, which is alpha / rank" } else { "" };
        problems.push(format!("`lora_parameters` has the unknown key `{key}`{hint}"));
    }
    let rank = parameters.get("rank").and_then(Value::as_u64).filter(|rank| *rank >= 1);
    let scale = parameters.get("scale").and_then(Value::as_f64).filter(|scale| *scale != 0.0);
    if rank.is_none() {
        problems.push("`lora_parameters.rank` must be a whole number of at least 1".to_owned());
    }
    if scale.is_none() {
        problems.push("`lora_parameters.scale` must be a number other than 0".to_owned());
    }
    let keys = keys(parameters, &mut problems);
    if !problems.is_empty() {
        return Err(problems);
    }
    let (rank, scale) = (rank.unwrap_or(1) as usize, scale.unwrap_or(1.0) as f32);
    let layers = usize::try_from(layers.unwrap_or(0)).unwrap_or(0);
    let wants = move |site: Site, count: Option<usize>| {
        // Zero and below mean all, as a slice of Python does; so does more than there are.
        let is_in = layers == 0 || count.is_none_or(|count| site.layer + layers >= count);
        is_in && keys.as_ref().is_none_or(|keys| keys.contains(site.module.path()))
    };
    Ok(Description {
        method: if is_dora { Method::Dora } else { Method::Lora },
        dropout: parameters.get("dropout").and_then(Value::as_f64).unwrap_or(0.0) as f32,
        base_model: config.get("model").and_then(Value::as_str).map(str::to_owned),
        wants: Box::new(wants),
        at: Box::new(move |_| (rank, Scaling::Factor(scale))),
        blocks: if layers == 0 { Blocks::All } else { Blocks::Last(layers) },
        place,
        name,
        transposed: true,
    })
}

/// Config and tensors of an adapter without subtracted parts. One rank and one scale hold for all sites: smaller ranks
/// are filled with zeros, and other scales go into B.
pub(super) fn to_file(
    adapter: &Adapter,
    options: &SaveOptions<'_>,
) -> Result<(Value, Vec<(String, Tensor)>), LoraError> {
    let rank = adapter.layers.values().map(|layer| layer.lora.rank()).max().unwrap_or(adapter.config.rank);
    let scale = most_common(adapter.layers.values().map(|layer| layer.lora.scale)).unwrap_or(1.0);
    let modules: BTreeSet<Module> = adapter.layers.keys().map(|site| site.module).collect();
    let (layers, blocks) = blocks(adapter, options.layer_count)?;
    let is_dora = adapter.config.method == Method::Dora;
    let keys: Vec<&str> = modules.iter().map(|module| module.path()).collect();
    let short = |value: f32| value.to_string().parse::<f64>().unwrap_or(f64::from(value));
    let config = json!({
        "fine_tune_type": if is_dora { "dora" } else { "lora" },
        "lora_parameters": { "rank": rank, "scale": short(scale), "dropout": short(adapter.config.dropout), "keys": keys },
        "model": options.base_model,
        "num_layers": layers,
    });
    let mut tensors = Vec::new();
    for (site, layer) in filled(adapter, &modules, blocks)? {
        let (a, b) = uniform(&layer.lora, rank, scale)?;
        tensors.push((name(site, Factor::A), a.t()?.contiguous()?));
        tensors.push((name(site, Factor::B), b.t()?.contiguous()?));
        tensors.extend(
            layer.magnitude.iter().map(|magnitude| (name(site, Factor::Magnitude), magnitude.clone())),
        );
    }
    Ok((config, tensors))
}

/// `num_layers`, and the blocks that it means.
fn blocks(adapter: &Adapter, count: Option<usize>) -> Result<(i64, Range<usize>), LoraError> {
    let used = adapter.layers.keys().map(|site| site.layer);
    let (first, end) = (used.clone().min().unwrap_or(0), used.max().map_or(0, |last| last + 1));
    let by_path = adapter.config.targets.iter().any(|target| Site::parse(target).is_some());
    match (count, adapter.config.last_layers) {
        (Some(count), _) if first == 0 => Ok((-1, 0..count.max(end))),
        (Some(count), _) => Ok(((count.max(end) - first) as i64, first..count.max(end))),
        (None, Some(_)) if !by_path => Ok(((end - first) as i64, first..end)),
        (None, None) if !by_path => Ok((-1, 0..end)),
        (None, _) => Err(LoraError::BlockCountUnknown),
    }
}

/// Every site that mlx-lm will give matrices: those that the adapter has not get zeros.
fn filled(
    adapter: &Adapter,
    modules: &BTreeSet<Module>,
    blocks: Range<usize>,
) -> Result<BTreeMap<Site, AdapterLayer>, LoraError> {
    let mut layers = adapter.layers.clone();
    for layer in blocks {
        for &module in modules {
            let site = Site { layer, module };
            if layers.contains_key(&site) {
                continue;
            }
            let like = adapter.layers.iter().find(|(other, _)| other.module == module);
            let (Some((_, like)), Method::Lora) = (like, adapter.config.method) else {
                return Err(LoraError::Setting {
                    name: "the adapter",
                    value: format!("DoRA without {site}"),
                    expected: "MLX gives every block the same modules, and DoRA has no matrices without effect; keep it in PEFT's format",
                });
            };
            let lora =
                LoraAdapter { a: like.lora.a.zeros_like()?, b: like.lora.b.zeros_like()?, ..like.lora };
            layers.insert(site, AdapterLayer { lora, magnitude: None, minus: None });
        }
    }
    Ok(layers)
}

/// A and B of this rank whose product has this factor.
fn uniform(lora: &LoraAdapter, rank: usize, scale: f32) -> Result<(Tensor, Tensor), LoraError> {
    let (mut a, mut b) = (lora.a.clone(), lora.b.clone());
    if lora.scale != scale {
        let factor = f64::from(lora.scale) / f64::from(scale);
        // In half precision the product would lose digits that the scale has.
        (a, b) = (a.to_dtype(DType::F32)?, (b.to_dtype(DType::F32)? * factor)?);
    }
    let missing = rank - lora.rank();
    if missing > 0 {
        let zeros = |shape: (usize, usize)| Tensor::zeros(shape, a.dtype(), a.device());
        let (below, beside) = (zeros((missing, a.dim(1)?))?, zeros((b.dim(0)?, missing))?);
        (a, b) = (Tensor::cat(&[&a, &below], 0)?, Tensor::cat(&[&b, &beside], 1)?);
    }
    Ok((a, b))
}

/// The paths within a block that `keys` names; all if there are none.
fn keys(parameters: &Map<String, Value>, problems: &mut Vec<String>) -> Option<BTreeSet<String>> {
    let keys: Option<BTreeSet<String>> = match parameters.get("keys") {
        None | Some(Value::Null) => return None,
        Some(Value::Array(keys)) => keys.iter().map(|key| key.as_str().map(str::to_owned)).collect(),
        Some(_) => None,
    };
    if keys.is_none() {
        problems.push("`lora_parameters.keys` must be a list of paths such as self_attn.q_proj".to_owned());
    }
    let is_known = |key: &str| Module::ALL.iter().any(|module| module.path() == key);
    for key in keys.iter().flatten().filter(|key| !is_known(key)) {
        problems.push(format!(
            "`lora_parameters.keys` names `{key}`, which is not a module of a block that is supported here"
        ));
    }
    keys
}

fn name(site: Site, factor: Factor) -> String {
    let end = match factor {
        Factor::A => "lora_a",
        Factor::B => "lora_b",
        Factor::Magnitude => "m",
    };
    format!("{site}.{end}")
}

fn place(name: &str) -> Option<(Site, Factor)> {
    let (site, kind) = name.rsplit_once('.')?;
    let factor = match kind {
        "lora_a" => Factor::A,
        "lora_b" => Factor::B,
        "m" => Factor::Magnitude,
        _ => return None,
    };
    Some((Site::parse(site)?, factor))
}
