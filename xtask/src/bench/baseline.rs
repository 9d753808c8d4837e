//! Saved results together with the programs that made them: a program can be run again beside its successor, a figure
//! cannot.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail, ensure};

use super::{
    environment::Environment,
    programs::{self, Programs},
    result::RunResult,
};
use crate::files;

pub(crate) struct Baseline {
    pub(crate) name: String,
    pub(crate) result: RunResult,
    /// None when they do not start here.
    pub(crate) programs: Option<Programs>,
}

/// Keeps a result and copies of its bench programs, in place of an earlier baseline of that name.
pub(crate) fn save(folder: &Path, name: &str, result: &RunResult, programs: &Programs) -> Result<PathBuf> {
    check_name(name)?;
    let place = folder.join("baselines").join(name);
    let parent = place.parent().unwrap_or(folder);
    std::fs::create_dir_all(parent).with_context(|| format!("cannot make {}", parent.display()))?;
    let new = tempfile::Builder::new().prefix(".saving-").tempdir_in(parent)?;
    files::write_json(&new.path().join("result.json"), result)?;
    programs.copy_to(&new.path().join("programs"))?;
    programs::replace_folder(&new.keep(), &place)?;
    Ok(place)
}

/// Reads a baseline that was saved on this machine.
pub(crate) fn load(folder: &Path, name: &str, here: &Environment, device: &str) -> Result<Baseline> {
    check_name(name)?;
    let place = folder.join("baselines").join(name);
    if !place.join("result.json").is_file() {
        let known: Vec<String> = std::fs::read_dir(folder.join("baselines"))
            .into_iter()
            .flatten()
            .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
            .collect();
        let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
        bail!("there is no baseline `{name}` ({known} saved); `--save-baseline {name}` makes one");
    }
    let result = RunResult::read(&place.join("result.json"))?;
    ensure!(
        result.environment.machine() == here.machine() && result.device == device,
        "the baseline `{name}` was measured on {} ({}), this is {} ({device}): times of two machines do not compare; \
         save a baseline here",
        result.environment.cpu,
        result.device,
        here.cpu,
    );
    let programs = programs::prebuilt(&place.join("programs"))
        .ok()
        .filter(|programs| programs.benches.values().all(|program| programs::rows(program, device).is_ok()));
    Ok(Baseline { name: name.to_owned(), result, programs })
}

fn check_name(name: &str) -> Result<()> {
    let is_plain = |character: char| character.is_ascii_alphanumeric() || "-_.".contains(character);
    ensure!(
        !name.is_empty() && !name.starts_with('.') && name.chars().all(is_plain),
        "`{name}` is no name for a baseline; use letters, digits, `-`, `_` and `.`"
    );
    Ok(())
}
