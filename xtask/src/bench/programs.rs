//! The bench programs: built by cargo, or brought along.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;

const PACKAGE: &str = "metal-candle-benches";

/// Programs on disk, by the names of their cargo targets.
#[derive(Debug, Clone, Default)]
pub(crate) struct Programs {
    /// Those that criterion drives.
    pub(crate) benches: BTreeMap<String, PathBuf>,
    /// `roofline` and the like.
    pub(crate) others: BTreeMap<String, PathBuf>,
}

/// Builds all bench programs. `--benches` makes cargo build the package's other programs too.
pub(crate) fn build(workspace: &Path, features: &[String]) -> Result<Programs> {
    let arguments = ["bench", "--no-run", "--package", PACKAGE, "--benches"];
    cargo(workspace, &arguments, features)
}

/// Builds what is compared with peers: `metal-candle` and `op_speed`.
pub(crate) fn build_for_peers(workspace: &Path, features: &[String]) -> Result<Programs> {
    let mut programs = cargo(workspace, &["build", "--release", "--package", "metal-candle-cli"], features)?;
    let arguments = ["build", "--release", "--package", "metal-candle-kernels", "--example", "op_speed"];
    programs.others.extend(cargo(workspace, &arguments, features)?.others);
    Ok(programs)
}

/// The package's program `name` as tests build it: the kernels are optimised there too, and CI has built all of it. Cargo turns
/// on the features that tests want only where something like a test is built besides: without, all would be built again.
pub(crate) fn build_for_counting(workspace: &Path, name: &str) -> Result<PathBuf> {
    let programs = cargo(workspace, &["build", "--workspace", "--bin", name, "--bench", "micro"], &[])?;
    Ok(programs.other(name)?.to_owned())
}

/// Runs cargo and reads from its messages where the programs are.
fn cargo(workspace: &Path, arguments: &[&str], features: &[String]) -> Result<Programs> {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command
        .current_dir(workspace)
        .args(arguments)
        .args(["--locked", "--message-format=json-render-diagnostics"]);
    if !features.is_empty() {
        command.args(["--features", &features.join(",")]);
    }
    // Cargo's own progress goes to the terminal.
    let output = command.stderr(Stdio::inherit()).output().context("cannot start cargo")?;
    ensure!(output.status.success(), "cargo {} failed", arguments.join(" "));
    let mut programs = Programs::default();
    for line in String::from_utf8_lossy(&output.stdout).lines() {
        let Ok(message) = serde_json::from_str::<Value>(line) else { continue };
        let (Some(executable), Some(name)) =
            (message["executable"].as_str(), message["target"]["name"].as_str())
        else {
            continue;
        };
        let kinds = if message["target"]["kind"][0] == "bench" {
            &mut programs.benches
        } else {
            &mut programs.others
        };
        kinds.insert(name.to_owned(), PathBuf::from(executable));
    }
    Ok(programs)
}

/// Programs in a folder, as `--save-baseline` and `scripts/cuda/build` leave them: `bench-NAME`, and others by name.
pub(crate) fn prebuilt(folder: &Path) -> Result<Programs> {
    let entries = std::fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))?;
    let mut programs = Programs::default();
    for entry in entries {
        let path = entry?.path();
        let Some(name) = path.file_name().and_then(|name| name.to_str()) else { continue };
        match name.strip_prefix("bench-") {
            Some(bench) => programs.benches.insert(bench.to_owned(), path.clone()),
            None => programs.others.insert(name.to_owned(), path.clone()),
        };
    }
    ensure!(
        !programs.benches.is_empty(),
        "{} has no bench programs; they are called bench-NAME, such as bench-micro",
        folder.display()
    );
    Ok(programs)
}

impl Programs {
    pub(crate) fn other(&self, name: &str) -> Result<&Path> {
        let path = self.others.get(name).map(PathBuf::as_path);
        path.with_context(|| format!("there is no program `{name}` beside the bench programs"))
    }

    /// Copies the bench programs to where `prebuilt` finds them.
    pub(crate) fn copy_to(&self, folder: &Path) -> Result<()> {
        std::fs::create_dir_all(folder)?;
        for (name, path) in &self.benches {
            let to = folder.join(format!("bench-{name}"));
            std::fs::copy(path, &to)
                .with_context(|| format!("cannot copy {} to {}", path.display(), to.display()))?;
        }
        Ok(())
    }

    /// The same bench programs behind links in a folder.
    pub(crate) fn linked(&self, folder: &Path) -> Result<Self> {
        std::fs::create_dir_all(folder)?;
        let link = |(name, path): (&String, &PathBuf)| -> Result<(String, PathBuf)> {
            let to = folder.join(format!("bench-{name}"));
            std::os::unix::fs::symlink(std::path::absolute(path)?, &to)
                .with_context(|| format!("cannot link {}", to.display()))?;
            Ok((name.clone(), to))
        };
        Ok(Self { benches: self.benches.iter().map(link).collect::<Result<_>>()?, others: BTreeMap::new() })
    }

    /// Keeps the bench programs of these names; none keeps all.
    pub(crate) fn select(&mut self, names: &[String]) -> Result<()> {
        for name in names {
            let known: Vec<&str> = self.benches.keys().map(String::as_str).collect();
            ensure!(
                known.contains(&name.as_str()),
                "there is no bench program `{name}`; there are {}",
                known.join(", ")
            );
        }
        self.benches.retain(|name, _| names.is_empty() || names.contains(name));
        Ok(())
    }
}

/// The rows of a bench program, in its order.
pub(crate) fn rows(program: &Path, device: &str) -> Result<Vec<String>> {
    let output = Command::new(program)
        .args(["--bench", "--list"])
        .env("METAL_CANDLE_BENCH_DEVICE", device)
        .env_remove("METAL_CANDLE_BENCH_SLOWER")
        .env_remove("METAL_CANDLE_BENCH_COUNTERS")
        .output()
        .with_context(|| format!("cannot start {}", program.display()))?;
    if !output.status.success() {
        bail!("{} --list failed: {}", program.display(), String::from_utf8_lossy(&output.stderr).trim());
    }
    let text = String::from_utf8_lossy(&output.stdout);
    Ok(text.lines().filter_map(|line| line.strip_suffix(": benchmark")).map(str::to_owned).collect())
}

/// Replaces a folder by another in two renames: what was there stays whole until the new one is complete.
pub(crate) fn replace_folder(new: &Path, place: &Path) -> Result<()> {
    let name = place.file_name().unwrap_or_default().to_string_lossy();
    let old = place.with_file_name(format!(".{name}.replaced"));
    if place.exists() {
        std::fs::rename(place, &old).with_context(|| format!("cannot move {}", place.display()))?;
    }
    std::fs::rename(new, place).with_context(|| format!("cannot make {}", place.display()))?;
    if old.exists() {
        std::fs::remove_dir_all(&old).with_context(|| format!("cannot remove {}", old.display()))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::files;

    #[test]
    fn copies_are_found_again_and_others_are_told_apart() {
        let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        files::write(&from.path().join("bench-micro"), b"program").unwrap();
        files::write(&from.path().join("roofline"), b"probe").unwrap();
        let programs = prebuilt(from.path()).unwrap();
        assert_eq!(programs.others.keys().collect::<Vec<_>>(), ["roofline"]);
        programs.copy_to(to.path()).unwrap();
        let mut again = prebuilt(to.path()).unwrap();
        assert_eq!(again.benches.keys().collect::<Vec<_>>(), ["micro"]);
        assert!(again.select(&["modle".into()]).unwrap_err().to_string().contains("there are micro"));
        assert!(prebuilt(tempfile::tempdir().unwrap().path()).is_err());
    }
}
