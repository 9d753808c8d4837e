//! The rules of `deny.toml` that need no network: licences, sources and bans of every crate in the lock file.
#![allow(clippy::unwrap_used)]

use std::{collections::BTreeSet, process::Command};

use serde_json::Value;

const WORKSPACE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");

fn packages() -> Vec<Value> {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version=1", "--locked", "--offline"])
        .args(["--filter-platform", "x86_64-unknown-linux-gnu"])
        .current_dir(WORKSPACE)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout).unwrap();
    metadata["packages"].as_array().unwrap().clone()
}

/// The texts between the brackets of `key = [ … ]`.
fn list(key: &str) -> BTreeSet<String> {
    let rules = std::fs::read_to_string(format!("{WORKSPACE}/deny.toml")).unwrap();
    let after = rules.split_once(&format!("\n{key} = [")).unwrap().1;
    let items = after.split_once(']').unwrap().0.split('"').skip(1).step_by(2);
    items.map(str::to_owned).collect()
}

/// Whether the allowed licences satisfy an SPDX expression. `/` is an old way to write OR.
fn satisfied(expression: &str, allowed: &BTreeSet<String>) -> bool {
    let expression = expression.trim();
    if let Some(inner) = expression.strip_prefix('(').and_then(|rest| rest.strip_suffix(')'))
        && !inner.contains(['(', ')'])
    {
        return satisfied(inner, allowed);
    }
    for (word, all) in [(" AND ", true), (" OR ", false), ("/", false)] {
        let parts = split_outside_brackets(expression, word);
        if parts.len() > 1 {
            let mut parts = parts.into_iter().map(|part| satisfied(part, allowed));
            return if all { parts.all(|part| part) } else { parts.any(|part| part) };
        }
    }
    allowed.contains(expression)
}

fn split_outside_brackets<'text>(text: &'text str, word: &str) -> Vec<&'text str> {
    let (mut parts, mut depth, mut start) = (Vec::new(), 0, 0);
    for (at, character) in text.char_indices() {
        match character {
            '(' => depth += 1,
            ')' => depth -= 1,
            _ if depth == 0 && text[at..].starts_with(word) => {
                parts.push(&text[start..at]);
                start = at + word.len();
            }
            _ => {}
        }
    }
    parts.push(&text[start..]);
    parts
}

#[test]
fn every_licence_is_allowed() {
    let allowed = list("allow");
    let refused: Vec<String> = packages()
        .iter()
        .filter(|package| !satisfied(package["license"].as_str().unwrap_or("none"), &allowed))
        .map(|package| format!("{} {}: {}", package["name"], package["version"], package["license"]))
        .collect();
    assert!(refused.is_empty(), "licences not allowed by deny.toml: {refused:#?}");
}

#[test]
fn every_crate_comes_from_the_registry_and_none_is_banned() {
    let banned = list("deny");
    for package in packages() {
        let name = package["name"].as_str().unwrap();
        assert!(!banned.contains(name), "{name} is banned by deny.toml");
        // Crates of the workspace itself have no source.
        let source = package["source"].as_str().unwrap_or("registry+");
        assert!(source.starts_with("registry+"), "{name} comes from {source}");
    }
}

#[test]
fn there_is_one_exact_candle() {
    let candles: Vec<Value> =
        packages().into_iter().filter(|package| package["name"] == "candle-core").collect();
    assert_eq!(candles.len(), 1);
    let manifest = std::fs::read_to_string(format!("{WORKSPACE}/Cargo.toml")).unwrap();
    let version = candles[0]["version"].as_str().unwrap();
    assert!(manifest.contains(&format!("candle-core = \"={version}\"")), "candle must be pinned exactly");
}

#[test]
fn expressions_are_read_as_spdx_means_them() {
    let allowed: BTreeSet<String> = ["MIT", "ISC"].map(str::to_owned).into();
    for (expression, expected) in [
        ("MIT", true),
        ("GPL-3.0", false),
        ("GPL-3.0 OR MIT", true),
        ("MIT/GPL-3.0", true),
        ("MIT AND GPL-3.0", false),
        ("(GPL-3.0 OR MIT) AND ISC", true),
        ("(GPL-3.0 OR MIT) AND (LGPL-2.1 OR BSD-3-Clause)", false),
    ] {
        assert_eq!(satisfied(expression, &allowed), expected, "{expression}");
    }
}
