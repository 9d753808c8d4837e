//! `metal-candle doctor`: what this machine and this build can do.

use std::{fs, path::Path};

use anyhow::Result;
use clap::Args;
use metal_candle::{
    device::{self, DeviceChoice},
    hub::HubOptions,
};
use serde_json::{Value, json};

use crate::console::{Console, human_bytes};

pub(crate) const EXAMPLES: &str = "\
Examples:
  metal-candle doctor
  metal-candle doctor --json     for a bug report; access tokens are never shown";

#[derive(Debug, Args)]
pub(crate) struct DoctorArgs {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: &DoctorArgs, console: &Console) -> Result<()> {
    let report = json!({
        "versions": versions(),
        "devices": devices(),
        "cpu": cpu(),
        "memory": memory(),
        "hub": hub(),
    });
    if args.json {
        return console.print_json(&report);
    }
    let mut text = String::new();
    for (section, value) in report.as_object().into_iter().flatten() {
        text += &format!("{section}\n");
        describe(value, 1, &mut text);
    }
    console.print(&text)
}

fn versions() -> Value {
    let features = [("cuda", DeviceChoice::Cuda(0)), ("metal", DeviceChoice::Metal(0))];
    let built_in = features.iter().filter(|(_, choice)| choice.is_compiled_in());
    json!({
        "metal-candle": env!("CARGO_PKG_VERSION"),
        "candle": device::CANDLE_VERSION,
        "rustc": env!("BUILD_RUSTC"),
        "target": env!("BUILD_TARGET"),
        "features": built_in.map(|(name, _)| *name).collect::<Vec<_>>(),
    })
}

fn devices() -> Value {
    let status = |choice: DeviceChoice| match choice.open() {
        Ok(_) => "ready".to_owned(),
        Err(error) => error.to_string(),
    };
    let accelerators = [DeviceChoice::Cuda(0), DeviceChoice::Metal(0)];
    let mut listed = json!({ "cpu": "ready" });
    for choice in accelerators {
        listed[choice.to_string()] = json!(status(choice));
    }
    listed["auto"] = json!(
        DeviceChoice::Auto
            .open()
            .map_or_else(|error| error.to_string(), |opened| format!("takes {}", device::kind(&opened)),)
    );
    listed
}

fn cpu() -> Value {
    json!({
        "model": cpu_info("model name"),
        "simd": device::simd_level().name(),
        "simd_available": device::simd_levels().map(|level| level.to_string()).collect::<Vec<_>>(),
        "features": cpu_features(),
        "threads": device::threads(),
    })
}

/// A field of the first processor, on Linux.
fn cpu_info(field: &str) -> Option<String> {
    let text = fs::read_to_string("/proc/cpuinfo").ok()?;
    let line = text.lines().find(|line| line.starts_with(field))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}

/// The features that matter for models, on Linux.
fn cpu_features() -> Option<Vec<String>> {
    let known = ["avx2", "fma", "f16c", "avx512", "avx_vnni", "amx", "asimd", "bf16", "i8mm", "sve"];
    let flags = cpu_info("flags").or_else(|| cpu_info("Features"))?;
    let matters = |flag: &&str| known.iter().any(|known| flag.starts_with(known));
    Some(flags.split_whitespace().filter(matters).map(str::to_owned).collect())
}

fn memory() -> Value {
    let huge_pages = fs::read_to_string("/sys/kernel/mm/transparent_hugepage/enabled").ok();
    // The kernel lists all settings and marks the one in use: `always [madvise] never`.
    let chosen = huge_pages.as_deref().and_then(|text| Some(text.split_once('[')?.1.split_once(']')?.0));
    json!({
        "total_bytes": device::physical_bytes(),
        "available_bytes": device::available_bytes(),
        "huge_pages": chosen,
    })
}

fn hub() -> Value {
    match HubOptions::from_env() {
        Ok(options) => json!({
            "endpoint": options.endpoint,
            "offline": options.offline,
            "token": if options.token.is_some() { "set" } else { "not set" },
            "cache": options.cache,
            "models": cached_models(&options.cache),
        }),
        Err(error) => json!({ "problem": error.to_string() }),
    }
}

/// The models of the cache with the bytes that they take.
fn cached_models(cache: &Path) -> Value {
    let mut models = serde_json::Map::new();
    for entry in fs::read_dir(cache).into_iter().flatten().flatten() {
        let folder = entry.file_name().to_string_lossy().into_owned();
        if let Some(name) = folder.strip_prefix("models--") {
            models.insert(name.replacen("--", "/", 1), json!({ "bytes": folder_bytes(&entry.path()) }));
        }
    }
    models.sort_keys();
    Value::Object(models)
}

/// The bytes of all files below; links are not followed, so each file counts once.
fn folder_bytes(folder: &Path) -> u64 {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let bytes = entries.map(|entry| match entry.metadata() {
        Ok(metadata) if metadata.is_dir() => folder_bytes(&entry.path()),
        Ok(metadata) if metadata.is_file() => metadata.len(),
        _ => 0,
    });
    bytes.sum()
}

/// Writes `name  value` lines; what is inside something stands further right.
fn describe(value: &Value, depth: usize, text: &mut String) {
    let Some(fields) = value.as_object() else { return };
    for (name, value) in fields {
        let indent = "  ".repeat(depth);
        let shown = match value {
            Value::Object(inner) if inner.is_empty() => "none".to_owned(),
            Value::Object(inner) => match inner.get("bytes").and_then(Value::as_u64) {
                Some(bytes) => human_bytes(bytes),
                None => {
                    *text += &format!("{indent}{name}\n");
                    describe(value, depth + 1, text);
                    continue;
                }
            },
            Value::Array(items) if items.is_empty() => "none".to_owned(),
            Value::Array(items) => items.iter().filter_map(Value::as_str).collect::<Vec<_>>().join(" "),
            Value::Null => "unknown".to_owned(),
            Value::String(text) => text.clone(),
            Value::Bool(yes) => if *yes { "yes" } else { "no" }.to_owned(),
            Value::Number(number) => match number.as_u64().filter(|_| name.ends_with("_bytes")) {
                Some(bytes) => human_bytes(bytes),
                None => number.to_string(),
            },
        };
        let name = name.strip_suffix("_bytes").unwrap_or(name).replace('_', " ");
        *text += &format!("{indent}{name:<16} {shown}\n");
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn cached_models_are_listed_with_their_size() {
        let cache = tempfile::tempdir().unwrap();
        let blobs = cache.path().join("models--org--some-name/blobs");
        fs::create_dir_all(&blobs).unwrap();
        fs::write(blobs.join("a"), [0; 1000]).unwrap();
        fs::write(blobs.join("b"), [0; 24]).unwrap();
        fs::create_dir(cache.path().join("datasets--org--other")).unwrap();
        assert_eq!(cached_models(cache.path()), json!({ "org/some-name": { "bytes": 1024 } }));
        assert_eq!(cached_models(&cache.path().join("none")), json!({}));
    }

    #[test]
    fn the_text_shows_every_field() {
        let mut text = String::new();
        describe(
            &json!({ "total_bytes": 2048, "list": ["a", "b"], "none": [], "on": true, "in": { "x": null } }),
            1,
            &mut text,
        );
        let lines: Vec<Vec<&str>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
        let expected: [&[&str]; 6] = [
            &["total", "2.0", "KiB"],
            &["list", "a", "b"],
            &["none", "none"],
            &["on", "yes"],
            &["in"],
            &["x", "unknown"],
        ];
        assert_eq!(lines, expected);
    }
}
