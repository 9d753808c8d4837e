//! PEFT's folders: `adapter_config.json` and `adapter_model.safetensors`
//! (<https://huggingface.co/docs/peft/main/en/developer_guides/checkpoint>).

use std::collections::BTreeMap;

use candle_core::Tensor;
use fancy_regex::Regex;
use serde_json::{Map, Value, json};

use super::{
    SaveOptions, most_common, number,
    stored::{Blocks, Description, Factor, pattern},
};
use crate::lora::{Adapter, LoraError, Method, Module, Scaling, Site};

const PREFIX: &str = "base_model.model.";

/// Keys that say nothing about what an adapter computes: where it comes from, and how it began.
const WITHOUT_EFFECT: &[&str] = &[
    "auto_mapping",
    "corda_config",
    "ensure_weight_tying",
    "eva_config",
    "inference_mode",
    "loftq_config",
    "lora_ga_config",
    "megatron_core",
    "peft_version",
    "qalora_group_size",
    "revision",
    "runtime_config",
    "task_type",
];
/// Keys that are read below.
const READ: &[&str] = &[
    "alpha_pattern",
    "base_model_name_or_path",
    "bias",
    "exclude_modules",
    "init_lora_weights",
    "layers_pattern",
    "layers_to_transform",
    "lora_alpha",
    "lora_dropout",
    "peft_type",
    "r",
    "rank_pattern",
    "target_modules",
    "use_dora",
    "use_rslora",
];
/// First values that leave the base model as it is.
const HARMLESS_STARTS: &[&str] = &["gaussian", "eva", "orthogonal"];

/// Reads a config, or lists all that stands in the way.
pub(super) fn describe(config: &Map<String, Value>) -> Result<Description, Vec<String>> {
    let mut reader = Reader { config, problems: Vec::new() };
    reader.refuse_unsupported();
    let rank = reader.number("r").filter(|rank| *rank >= 1.0 && rank.fract() == 0.0);
    if rank.is_none() {
        reader.problem("`r` must be a whole number of at least 1");
    }
    let alpha = reader.number("lora_alpha").filter(|alpha| *alpha != 0.0);
    if alpha.is_none() {
        reader.problem("`lora_alpha` must be a number other than 0");
    }
    let (rank, alpha) = (rank.unwrap_or(1.0) as usize, alpha.unwrap_or(1.0) as f32);
    let scaling =
        if reader.flag("use_rslora") { Scaling::RankStabilised(alpha) } else { Scaling::Alpha(alpha) };
    let ranks = reader.patterns("rank_pattern");
    if ranks.iter().any(|(_, rank)| *rank < 1.0 || rank.fract() != 0.0) {
        reader.problem("`rank_pattern` must hold whole numbers of at least 1");
    }
    let alphas = reader.patterns("alpha_pattern");
    let at = move |site: Site| {
        let path = site.path();
        let rank = first_match(&ranks, &path).map_or(rank, |rank| rank as usize);
        (rank, scaling.with_alpha(first_match(&alphas, &path).map(|alpha| alpha as f32)))
    };
    let targets = reader.selection("target_modules");
    let excluded = reader.selection("exclude_modules");
    let layers = reader.layers();
    if targets.is_none() {
        reader.problem(
            "`target_modules` must name the modules: a list, a regular expression or \"all-linear\"",
        );
    }
    let is_limited = !layers.indices.is_empty() || matches!(targets, Some(Selection::Expression(_)));
    let blocks = if is_limited { Blocks::Listed } else { Blocks::All };
    let wants = move |site: Site, _| {
        let path = site.path();
        let is_excluded = excluded.as_ref().is_some_and(|excluded| excluded.names(&path));
        !is_excluded && targets.as_ref().is_some_and(|targets| targets.selects(&path, &layers))
    };
    let dropout = reader.number("lora_dropout").unwrap_or(0.0) as f32;
    let method = if reader.flag("use_dora") { Method::Dora } else { Method::Lora };
    if !reader.problems.is_empty() {
        return Err(reader.problems);
    }
    Ok(Description {
        method,
        dropout,
        base_model: config.get("base_model_name_or_path").and_then(Value::as_str).map(str::to_owned),
        wants: Box::new(wants),
        blocks,
        at: Box::new(at),
        place,
        name,
        transposed: false,
    })
}

/// Config and tensors of an adapter without subtracted parts.
pub(super) fn to_file(
    adapter: &Adapter,
    options: &SaveOptions<'_>,
) -> Result<(Value, Vec<(String, Tensor)>), LoraError> {
    let config = &adapter.config;
    let is_stabilised = matches!(config.scaling, Scaling::RankStabilised(_));
    let at: BTreeMap<Site, (usize, f64)> = adapter
        .layers
        .iter()
        .map(|(&site, layer)| {
            let rank = layer.lora.rank();
            let own = (config.rank_at(site) == rank).then(|| config.scaling_at(site));
            (site, (rank, alpha(layer.lora.scale, rank, is_stabilised, own)))
        })
        .collect();
    let rank = most_common(at.values().map(|(rank, _)| *rank)).unwrap_or(config.rank);
    let alpha = most_common(at.values().map(|(_, alpha)| *alpha)).unwrap_or(1.0);
    let ranks = pattern(&at, |(own, _)| (own != rank).then_some(own));
    let alphas = pattern(&at, |(_, own)| (own != alpha).then_some(own));
    let alphas: Map<String, Value> = alphas.into_iter().map(|(key, alpha)| (key, number(alpha))).collect();
    let (targets, layers) = targets(adapter, options.layer_count);
    let value = json!({
        "alpha_pattern": alphas,
        "auto_mapping": null,
        "base_model_name_or_path": options.base_model,
        "bias": "none",
        "fan_in_fan_out": false,
        "inference_mode": true,
        "init_lora_weights": true,
        "layers_pattern": null,
        "layers_to_transform": layers,
        "lora_alpha": number(alpha),
        "lora_dropout": short(config.dropout),
        "modules_to_save": null,
        "peft_type": "LORA",
        "r": rank,
        "rank_pattern": ranks,
        "revision": null,
        "target_modules": targets,
        "task_type": "CAUSAL_LM",
        "use_dora": config.method == Method::Dora,
        "use_rslora": is_stabilised,
    });
    let mut tensors = Vec::new();
    for (&site, layer) in &adapter.layers {
        tensors.push((name(site, Factor::A), layer.lora.a.clone()));
        tensors.push((name(site, Factor::B), layer.lora.b.clone()));
        tensors.extend(
            layer.magnitude.iter().map(|magnitude| (name(site, Factor::Magnitude), magnitude.clone())),
        );
    }
    Ok((value, tensors))
}

fn name(site: Site, factor: Factor) -> String {
    let end = match factor {
        Factor::A => "lora_A.weight",
        Factor::B => "lora_B.weight",
        Factor::Magnitude => "lora_magnitude_vector",
    };
    format!("{PREFIX}{site}.{end}")
}

fn place(name: &str) -> Option<(Site, Factor)> {
    let path = name.strip_prefix(PREFIX)?;
    // Older versions write the magnitudes with `.weight`.
    let path = path.strip_suffix(".weight").unwrap_or(path);
    let (site, kind) = path.rsplit_once('.')?;
    let factor = match kind {
        "lora_A" => Factor::A,
        "lora_B" => Factor::B,
        "lora_magnitude_vector" => Factor::Magnitude,
        _ => return None,
    };
    Some((Site::parse(site)?, factor))
}

/// An alpha that gives this scale at this rank: the config's own where it does, a whole number where one does.
fn alpha(scale: f32, rank: usize, is_stabilised: bool, own: Option<Scaling>) -> f64 {
    let kind = |alpha| if is_stabilised { Scaling::RankStabilised(alpha) } else { Scaling::Alpha(alpha) };
    let root = rank as f64;
    let exact = f64::from(scale) * if is_stabilised { root.sqrt() } else { root };
    let own = match own {
        Some(Scaling::Alpha(alpha) | Scaling::RankStabilised(alpha)) => Some(short(alpha)),
        _ => None,
    };
    let candidates = own.into_iter().chain([exact.round(), short(exact as f32)]);
    let mut fitting = candidates.filter(|alpha| kind(*alpha as f32).factor(rank) == scale);
    fitting.next().unwrap_or(exact)
}

/// The number that is written as this f32: 0.1, not 0.10000000149.
fn short(value: f32) -> f64 {
    value.to_string().parse().unwrap_or(f64::from(value))
}

/// What names exactly these sites: modules and blocks where that is possible, else paths.
fn targets(adapter: &Adapter, count: Option<usize>) -> (Vec<String>, Option<Vec<usize>>) {
    let modules: Vec<Module> = Module::ALL
        .into_iter()
        .filter(|module| adapter.layers.keys().any(|site| site.module == *module))
        .collect();
    let mut blocks: Vec<usize> = adapter.layers.keys().map(|site| site.layer).collect();
    blocks.dedup();
    if adapter.layers.len() != modules.len() * blocks.len() {
        return (adapter.layers.keys().map(|site| site.path()).collect(), None);
    }
    let starts_at_first = blocks.iter().copied().eq(0..blocks.len());
    let is_all = starts_at_first && count.is_none_or(|count| count == blocks.len());
    let names = modules.into_iter().map(|module| module.name().to_owned()).collect();
    (names, (!is_all).then_some(blocks))
}

/// Modules by name, or by an expression.
enum Selection {
    All,
    Ends(Vec<String>),
    Expression(Regex),
}

/// Which blocks a list of names is limited to.
struct Layers {
    indices: Vec<usize>,
    /// Each with the number of the block as its first group.
    patterns: Vec<Regex>,
}

impl Selection {
    fn names(&self, path: &str) -> bool {
        match self {
            Self::All => true,
            Self::Ends(ends) => ends.iter().any(|end| path == end || path.ends_with(&format!(".{end}"))),
            Self::Expression(expression) => expression.is_match(path).unwrap_or(false),
        }
    }

    /// As `names`, in these blocks only; a whole path needs no block.
    fn selects(&self, path: &str, layers: &Layers) -> bool {
        let is_whole = matches!(self, Self::Ends(ends) if ends.iter().any(|end| end == path));
        self.names(path) && (is_whole || layers.indices.is_empty() || layers.hold(path))
    }
}

impl Layers {
    fn hold(&self, path: &str) -> bool {
        let block = self.patterns.iter().find_map(|pattern| {
            let captures = pattern.captures(path).ok()??;
            captures.get(1)?.as_str().parse().ok()
        });
        block.is_some_and(|block: usize| self.indices.contains(&block))
    }
}

/// The value of the first pattern, in the order of the file, that matches the end of a path.
fn first_match(patterns: &[(Regex, f64)], path: &str) -> Option<f64> {
    let found = patterns.iter().find(|(pattern, _)| pattern.is_match(path).unwrap_or(false));
    found.map(|(_, value)| *value)
}

struct Reader<'a> {
    config: &'a Map<String, Value>,
    problems: Vec<String>,
}

impl Reader<'_> {
    fn problem(&mut self, text: impl Into<String>) {
        self.problems.push(text.into());
    }

    /// Every key that would change what the adapter computes.
    fn refuse_unsupported(&mut self) {
        let text = |key: &str| self.config.get(key).and_then(Value::as_str);
        let mut problems = Vec::new();
        match self.config.get("peft_type") {
            Some(Value::String(kind)) if kind == "LORA" => {}
            other => {
                problems.push(format!("`peft_type` is {}, and only \"LORA\" is supported", shown(other)));
            }
        }
        if text("bias").is_some_and(|bias| bias != "none") {
            problems.push(format!(
                "`bias` is {}: trained biases are not supported",
                shown(self.config.get("bias"))
            ));
        }
        let start = self.config.get("init_lora_weights").unwrap_or(&Value::Null);
        let is_harmless = start.as_str().is_none_or(|name| HARMLESS_STARTS.contains(&name));
        if !is_harmless {
            problems.push(format!(
                "`init_lora_weights` is {start}: it changes the base model; save the adapter converted to LoRA \
                 (`path_initial_model_for_weight_conversion` of PEFT's save_pretrained)"
            ));
        }
        for (key, value) in self.config {
            let is_known = READ.contains(&key.as_str()) || WITHOUT_EFFECT.contains(&key.as_str());
            if !is_known && !is_neutral(value) {
                problems.push(format!("`{key}` is {}, which is not supported", shown(Some(value))));
            }
        }
        self.problems.extend(problems);
    }

    fn flag(&mut self, key: &str) -> bool {
        match self.config.get(key) {
            None | Some(Value::Null) => false,
            Some(Value::Bool(flag)) => *flag,
            other => {
                let text = format!("`{key}` is {}, expected true or false", shown(other));
                self.problem(text);
                false
            }
        }
    }

    fn number(&mut self, key: &str) -> Option<f64> {
        let value = self.config.get(key).filter(|value| !value.is_null())?;
        let number = value.as_f64();
        if number.is_none() {
            let text = format!("`{key}` is {}, expected a number", shown(Some(value)));
            self.problem(text);
        }
        number
    }

    fn patterns(&mut self, key: &str) -> Vec<(Regex, f64)> {
        let patterns = match self.config.get(key) {
            None | Some(Value::Null) => return Vec::new(),
            Some(Value::Object(patterns)) => patterns,
            other => {
                let text = format!("`{key}` is {}, expected numbers by module", shown(other));
                self.problem(text);
                return Vec::new();
            }
        };
        let mut compiled = Vec::new();
        for (pattern, value) in patterns {
            let expression = self.expression(key, &format!(r"^(?:.*\.)?(?:{pattern})$"));
            match (expression, value.as_f64()) {
                (Some(expression), Some(value)) => compiled.push((expression, value)),
                (_, None) => self.problem(format!(
                    "`{key}` holds {} for {pattern:?}, expected a number",
                    shown(Some(value))
                )),
                (None, _) => {}
            }
        }
        compiled
    }

    fn selection(&mut self, key: &str) -> Option<Selection> {
        match self.config.get(key) {
            None | Some(Value::Null) => None,
            Some(Value::String(text)) if text == "all-linear" => Some(Selection::All),
            Some(Value::String(text)) => {
                self.expression(key, &format!("^(?:{text})$")).map(Selection::Expression)
            }
            Some(Value::Array(names)) => {
                let texts: Option<Vec<String>> =
                    names.iter().map(|name| name.as_str().map(str::to_owned)).collect();
                if texts.is_none() {
                    self.problem(format!("`{key}` must be a list of names"));
                }
                texts.filter(|texts| !texts.is_empty()).map(Selection::Ends)
            }
            other => {
                let text = format!("`{key}` is {}, expected names of modules", shown(other));
                self.problem(text);
                None
            }
        }
    }

    fn layers(&mut self) -> Layers {
        let index = |value: &Value| value.as_u64().and_then(|index| usize::try_from(index).ok());
        let indices = match self.config.get("layers_to_transform") {
            None | Some(Value::Null) => Some(Vec::new()),
            Some(Value::Array(values)) => values.iter().map(index).collect(),
            Some(value) => index(value).map(|index| vec![index]),
        };
        if indices.is_none() {
            self.problem("`layers_to_transform` must be a number or a list of numbers");
        }
        let names = match self.config.get("layers_pattern") {
            Some(Value::String(name)) if !name.is_empty() => vec![name.clone()],
            Some(Value::Array(names)) => {
                names.iter().filter_map(|name| name.as_str().map(str::to_owned)).collect()
            }
            _ => Vec::new(),
        };
        let mut expressions: Vec<String> =
            names.iter().map(|name| format!(r"^(?:.*?\.)?(?:{name})\.(\d+)\.")).collect();
        if expressions.is_empty() {
            expressions.push(r"^.*?\.[^.]*\.(\d+)\.".to_owned());
        }
        let patterns =
            expressions.iter().filter_map(|text| self.expression("layers_pattern", text)).collect();
        Layers { indices: indices.unwrap_or_default(), patterns }
    }

    fn expression(&mut self, key: &str, text: &str) -> Option<Regex> {
        let compiled = Regex::new(text);
        if let Err(error) = &compiled {
            self.problem(format!("`{key}` holds a regular expression that cannot be read: {error}"));
        }
        compiled.ok()
    }
}

/// A value that switches its key off.
fn is_neutral(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Array(items) => items.is_empty(),
        Value::Object(entries) => entries.is_empty(),
        _ => false,
    }
}

/// A value for a message, not too long.
fn shown(value: Option<&Value>) -> String {
    let Some(value) = value else { return "missing".to_owned() };
    let text = value.to_string();
    match text.char_indices().nth(60) {
        Some((cut, _)) => format!("{}…", &text[..cut]),
        None => text,
    }
}
