//! `metal-candle adapter`: look at adapters, convert them between formats, merge them into a model.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use clap::{Args, Subcommand, ValueEnum};
use metal_candle::{
    hub::FilesWanted,
    lora::{
        Adapter, Format, LoraError, MergeOptions, Method, Module, Norms, SaveOptions, Scaling, Site,
        StoredAdapter, merge,
    },
    model::{Config, arch},
};
use serde_json::{Value, json};

use crate::{
    args::{DTypeChoice, SourceArgs},
    console::{Console, human_bytes},
    model,
};

pub(crate) const EXAMPLES: &str = "\
An adapter is a folder: adapter_config.json with adapter_model.safetensors (PEFT) or with
adapters.safetensors (MLX). Both can be used wherever a command takes --adapter.

Examples:
  metal-candle adapter inspect ./adapter
  metal-candle adapter convert ./adapter ./adapter-mlx --format mlx
  metal-candle adapter merge -m ./model --adapter ./adapter --output ./merged";

#[derive(Debug, Args)]
pub(crate) struct AdapterCommand {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Show what an adapter is and how large its changes are
    Inspect(InspectArgs),
    /// Write an adapter in another format
    Convert(ConvertArgs),
    /// Write a model with an adapter in its weights, for any program that reads Hugging Face folders
    Merge(MergeArgs),
}

#[derive(Debug, Args)]
struct InspectArgs {
    /// The adapter's folder
    #[arg(value_name = "FOLDER")]
    folder: PathBuf,

    /// Print JSON, with the norms of every module of every block
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
struct ConvertArgs {
    /// The adapter's folder
    #[arg(value_name = "FROM")]
    from: PathBuf,

    /// A new folder
    #[arg(value_name = "TO")]
    to: PathBuf,

    /// The format to write
    #[arg(long, value_name = "FORMAT")]
    format: FormatChoice,

    /// The folder of the model, to check the adapter against its config.json; an adapter for some blocks only needs it
    #[arg(long, short, value_name = "FOLDER")]
    model: Option<PathBuf>,

    /// What the new folder calls the base model [default: as the old one does]
    #[arg(long, value_name = "NAME")]
    base_model: Option<String>,

    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
struct MergeArgs {
    #[command(flatten)]
    source: SourceArgs,

    /// The adapter's folder
    #[arg(long, value_name = "FOLDER")]
    adapter: PathBuf,

    /// A new folder for the merged model
    #[arg(long, short, value_name = "FOLDER")]
    output: PathBuf,

    /// The dtype of the written weights; auto keeps that of the model
    #[arg(long, value_name = "DTYPE", default_value = "auto")]
    dtype: DTypeChoice,

    /// Accept this unknown key of config.json, which you know to be harmless (repeatable)
    #[arg(long, value_name = "KEY")]
    ignore_config_key: Vec<String>,

    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum FormatChoice {
    Peft,
    Mlx,
}

pub(crate) fn run(command: &AdapterCommand, console: &Console) -> Result<()> {
    match &command.action {
        Action::Inspect(args) => inspect(args, console),
        Action::Convert(args) => convert(args, console),
        Action::Merge(args) => run_merge(args, console),
    }
}

fn inspect(args: &InspectArgs, console: &Console) -> Result<()> {
    let stored = StoredAdapter::load(&args.folder, None).context("cannot read the adapter")?;
    let mut norms = BTreeMap::new();
    for (&site, layer) in &stored.adapter.layers {
        norms.insert(site, layer.norms()?);
    }
    if args.json {
        return console.print_json(&inspect_json(&stored, &norms));
    }
    console.print(&inspect_text(&stored, &norms))
}

fn convert(args: &ConvertArgs, console: &Console) -> Result<()> {
    let format = match args.format {
        FormatChoice::Peft => Format::Peft,
        FormatChoice::Mlx => Format::Mlx,
    };
    format.check_vacant(&args.to).context("cannot write the adapter")?;
    let spec = match &args.model {
        None => None,
        Some(folder) => {
            let config = Config::load(folder).context("cannot read the model's config")?;
            Some(arch::read(&config, &[]).context("cannot read the model's config")?)
        }
    };
    let stored = StoredAdapter::load(&args.from, spec.as_ref()).context("cannot read the adapter")?;
    let base_model = args.base_model.clone().or_else(|| stored.base_model.clone());
    let options =
        SaveOptions { base_model: base_model.as_deref(), layer_count: spec.map(|spec| spec.layers.len()) };
    stored.adapter.save(&args.to, format, &options).map_err(advise).context("cannot convert the adapter")?;
    if args.json {
        return console.print_json(&json!({
            "from": { "folder": path_text(&args.from), "format": stored.format.name() },
            "to": { "folder": path_text(&args.to), "format": format.name() },
            "base_model": base_model,
        }));
    }
    console.note(format_args!("wrote {} adapter to {}", format, args.to.display()));
    Ok(())
}

/// Says which flag gives what is missing.
fn advise(error: LoraError) -> anyhow::Error {
    let needs_model = matches!(error, LoraError::BlockCountUnknown);
    let error = anyhow::Error::from(error);
    if needs_model { error.context("give the model's folder with --model") } else { error }
}

fn run_merge(args: &MergeArgs, console: &Console) -> Result<()> {
    // Before the model: it may have to be downloaded.
    let format = Format::detect(&args.adapter).context("cannot use the adapter")?;
    let folder = model::folder(&args.source, FilesWanted::Everything, console)?;
    let options = MergeOptions {
        dtype: args.dtype.explicit(),
        ignore_config_keys: args.ignore_config_key.clone(),
        ..MergeOptions::default()
    };
    let config = Config::load(&folder).context("cannot read the model's config")?;
    let spec = arch::read(&config, &options.ignore_config_keys).context("cannot read the model's config")?;
    let stored = StoredAdapter::load(&args.adapter, Some(&spec))
        .with_context(|| format!("cannot use the adapter {}", args.adapter.display()))?;
    let bar = console.bytes_bar("merging", 0);
    let merged = merge(&folder, &stored.adapter, &args.output, &options, &mut |done, total| {
        bar.set_length(total);
        bar.set_position(done);
    });
    bar.finish_and_clear();
    let merged = merged.with_context(|| format!("cannot merge into {}", args.output.display()))?;
    if args.json {
        return console.print_json(&json!({
            "output": path_text(&args.output),
            "adapter_format": format.name(),
            "changed": merged.changed,
            "tensors": merged.tensors,
            "bytes": merged.bytes,
            "shards": merged.shards,
            "copied": merged.copied,
        }));
    }
    console.note(format_args!(
        "wrote {}: {} of {} weights changed, {}",
        args.output.display(),
        merged.changed,
        merged.tensors,
        human_bytes(merged.bytes)
    ));
    Ok(())
}

fn inspect_text(stored: &StoredAdapter, norms: &BTreeMap<Site, Norms>) -> String {
    let adapter = &stored.adapter;
    let config = &adapter.config;
    let layers: Vec<usize> = distinct(adapter.layers.keys().map(|site| site.layer));
    let mut text = String::new();
    let mut line = |name: &str, value: String| writeln!(text, "{name:<12}{value}").unwrap_or(());
    line("format", stored.format.name().to_owned());
    line("method", method_name(config.method, config.scaling).to_owned());
    line("rank", spread(adapter.layers.values().map(|layer| layer.lora.rank() as f64)));
    line("scale", spread(adapter.layers.values().map(|layer| f64::from(layer.lora.scale))));
    line("dropout", config.dropout.to_string());
    line("base model", stored.base_model.clone().unwrap_or_else(|| "not named".to_owned()));
    line("blocks", ranges(&layers));
    line("parameters", adapter.parameters().to_string());
    line("dtype", dtypes(adapter).join(", "));
    line("file", human_bytes(stored.bytes));
    writeln!(
        text,
        "\n{:<14}{:>7}{:>13}{:>12}{:>12}{:>14}",
        "module", "blocks", "parameters", "|A|", "|B|", "|scale·B·A|"
    )
    .unwrap_or(());
    for module in Module::ALL {
        let own = || adapter.layers.iter().filter(|(site, _)| site.module == module);
        let (name, blocks) = (module.name(), own().count());
        if blocks == 0 {
            continue;
        }
        let parameters: u64 = own().map(|(_, layer)| layer.parameters()).sum();
        let of_sites = own().filter_map(|(site, _)| norms.get(site)).copied();
        let Norms { a, b, change } = of_sites.fold(Norms::default(), Norms::and);
        writeln!(text, "{name:<14}{blocks:>7}{parameters:>13}{a:>12.4}{b:>12.4}{change:>14.4}").unwrap_or(());
    }
    text
}

fn inspect_json(stored: &StoredAdapter, norms: &BTreeMap<Site, Norms>) -> Value {
    let adapter = &stored.adapter;
    let config = &adapter.config;
    let modules: Vec<&str> =
        distinct(adapter.layers.keys().map(|site| site.module)).into_iter().map(Module::name).collect();
    let sites = adapter.layers.iter().map(|(site, layer)| {
        let norms = norms.get(site).copied().unwrap_or_default();
        json!({
            "path": site.path(),
            "rank": layer.lora.rank(),
            "scale": layer.lora.scale,
            "inputs": layer.lora.a.dims().last(),
            "outputs": layer.lora.outputs(),
            "parameters": layer.parameters(),
            "norm_a": norms.a,
            "norm_b": norms.b,
            "norm_change": norms.change,
        })
    });
    json!({
        "format": stored.format.name(),
        "method": method_name(config.method, config.scaling),
        "rank": config.rank,
        "dropout": config.dropout,
        "base_model": stored.base_model,
        "targets": modules,
        "blocks": distinct(adapter.layers.keys().map(|site| site.layer)),
        "parameters": adapter.parameters(),
        "dtypes": dtypes(adapter),
        "bytes": stored.bytes,
        "modules": sites.collect::<Vec<Value>>(),
    })
}

fn method_name(method: Method, scaling: Scaling) -> &'static str {
    match (method, scaling) {
        (Method::Dora, _) => "dora",
        (Method::Lora, Scaling::RankStabilised(_)) => "rslora",
        (Method::Lora, _) => "lora",
    }
}

fn dtypes(adapter: &Adapter) -> Vec<&'static str> {
    distinct(adapter.layers.values().map(|layer| layer.lora.a.dtype().as_str()))
}

/// `8`, or `4 to 16`.
fn spread(values: impl Iterator<Item = f64>) -> String {
    let (low, high) = values
        .fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), value| (low.min(value), high.max(value)));
    let text = |value: f64| (value as f32).to_string();
    if low == high { text(low) } else { format!("{} to {}", text(low), text(high)) }
}

/// `0-3, 7`.
fn ranges(numbers: &[usize]) -> String {
    let mut parts: Vec<(usize, usize)> = Vec::new();
    for &number in numbers {
        match parts.last_mut() {
            Some((_, last)) if *last + 1 == number => *last = number,
            _ => parts.push((number, number)),
        }
    }
    let text = |&(first, last): &(usize, usize)| {
        if first == last { first.to_string() } else { format!("{first}-{last}") }
    };
    parts.iter().map(text).collect::<Vec<_>>().join(", ")
}

fn distinct<T: Ord>(values: impl Iterator<Item = T>) -> Vec<T> {
    values.collect::<std::collections::BTreeSet<T>>().into_iter().collect()
}

fn path_text(path: &Path) -> String {
    path.display().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_shown_as_ranges() {
        assert_eq!(ranges(&[0, 1, 2, 3, 7]), "0-3, 7");
        assert_eq!(ranges(&[5]), "5");
        assert_eq!(spread([2.0, 2.0].into_iter()), "2");
        assert_eq!(spread([4.0, 0.5].into_iter()), "0.5 to 4");
    }
}
