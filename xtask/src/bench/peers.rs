//! Other programs on the same shapes, measured in turns with ours by `benches/peers/suite.py`.

use std::{path::Path, process::Command};

use anyhow::{Context as _, Result, ensure};
use serde::{Deserialize, Serialize};

use super::statistics::{Interval, paired_ratio};
use crate::files;

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Peers {
    /// Of the driver's own run, which may be of another day than the rows.
    #[serde(default, rename = "settings", skip_serializing_if = "Option::is_none")]
    pub(crate) origin: Option<Origin>,
    pub(crate) peers: Vec<Peer>,
    pub(crate) rounds: Vec<Rounds>,
    /// What was asked for and is not there.
    #[serde(default)]
    pub(crate) left_out: Vec<LeftOut>,
}

impl Peers {
    /// What is left out although its peer, or ours, ran in another comparison.
    pub(crate) fn gaps(&self) -> impl Iterator<Item = &LeftOut> {
        let is_missing =
            |name: &String| self.peers.iter().any(|peer| peer.name == *name && peer.status != "measured");
        self.left_out.iter().filter(move |gap| !gap.peer.as_ref().is_some_and(is_missing))
    }
}

/// When the driver measured, and the commit of our program.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Origin {
    pub(crate) date: String,
    pub(crate) commit: Option<String>,
}

/// A program that gave no figure for a comparison.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct LeftOut {
    pub(crate) comparison: String,
    pub(crate) program: String,
    /// Nobody's where it is ours.
    pub(crate) peer: Option<String>,
    pub(crate) why: String,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Peer {
    pub(crate) name: String,
    pub(crate) version: Option<String>,
    /// `measured`, or `missing: why and what to do`.
    pub(crate) status: String,
}

/// One comparison on one shape.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Rounds {
    pub(crate) comparison: String,
    pub(crate) shape: String,
    pub(crate) unit: String,
    pub(crate) better: Better,
    /// What the ratio is to be at least.
    pub(crate) bar: Option<f64>,
    pub(crate) ours: String,
    pub(crate) peer: String,
    /// `[ours, peer]` of each round.
    pub(crate) pairs: Vec<(f64, f64)>,
    /// How many times better ours is, with the 95 % bootstrap interval over rounds.
    #[serde(default)]
    pub(crate) ratio: Option<Interval>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Better {
    Higher,
    Lower,
}

/// How the driver is started.
pub(crate) struct Settings<'a> {
    pub(crate) device: &'a str,
    pub(crate) program: &'a Path,
    /// Times single operations of the kernels.
    pub(crate) op_speed: &'a Path,
    pub(crate) rounds: Option<usize>,
    pub(crate) install: bool,
}

/// Runs the driver; its progress goes to our standard error.
pub(crate) fn measure(workspace: &Path, settings: &Settings<'_>) -> Result<Peers> {
    let driver = workspace.join("benches/peers/suite.py");
    ensure!(driver.is_file(), "{} is not there; the comparison with peers needs it", driver.display());
    // The driver knows kinds of devices, not their numbers.
    let device = ["--device", settings.device.split(':').next().unwrap_or_default()];
    if settings.install {
        // A peer that cannot be had is named as missing in the result.
        let mut install = Command::new("python3");
        install.arg(&driver).arg("--install-peers").args(device).stdout(std::io::stderr());
        let status = install.status().context("cannot start python3; install it, or leave --peers out")?;
        if !status.success() {
            eprintln!("not every peer could be installed; going on with those that are there");
        }
    }
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("peers.json");
    let mut command = Command::new("python3");
    command.arg(&driver).arg("--json").arg(&file).arg("--program").arg(settings.program);
    command.arg("--op-speed").arg(settings.op_speed);
    command.args(device);
    if let Some(rounds) = settings.rounds {
        command.args(["--rounds", &rounds.to_string()]);
    }
    command.stdout(std::io::stderr());
    let status = command.status().context("cannot start python3; install it, or leave --peers out")?;
    ensure!(status.success(), "{} ended with {status}; its last lines say why", driver.display());
    read(&file)
}

/// The driver's JSON, with ratios.
pub(crate) fn read(file: &Path) -> Result<Peers> {
    let mut peers: Peers = files::read_json(file)?;
    for rounds in &mut peers.rounds {
        let name = format!("{} {} {}", rounds.comparison, rounds.shape, rounds.peer);
        let is_sound = |value: f64| value.is_finite() && value > 0.0;
        ensure!(
            rounds.pairs.iter().all(|(ours, peer)| is_sound(*ours) && is_sound(*peer)),
            "{}: {name} has a figure that is not positive",
            file.display()
        );
        if rounds.pairs.is_empty() {
            continue;
        }
        let swapped = |(ours, peer): &(f64, f64)| match rounds.better {
            Better::Higher => (*ours, *peer),
            Better::Lower => (*peer, *ours),
        };
        let pairs: Vec<(f64, f64)> = rounds.pairs.iter().map(swapped).collect();
        rounds.ratio = Some(paired_ratio(&pairs, &name));
    }
    Ok(peers)
}

impl Rounds {
    /// Whether the estimate misses the bar.
    pub(crate) fn is_below(&self) -> bool {
        self.bar.zip(self.ratio).is_some_and(|(bar, ratio)| ratio.estimate < bar)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ratios_say_how_many_times_better_ours_is() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("peers.json");
        let text = r#"{"peers":[{"name":"other","version":"1","status":"measured"}],"rounds":[
            {"comparison":"decode","shape":"s","unit":"tok/s","better":"higher","bar":2.5,"ours":"a","peer":"b","pairs":[[20,10],[22,11]]},
            {"comparison":"op","shape":"s","unit":"ms","better":"lower","bar":null,"ours":"a","peer":"b","pairs":[[10,20],[10,20]]}]}"#;
        files::write(&file, text.as_bytes()).unwrap();
        let peers = read(&file).unwrap();
        let ratios: Vec<f64> = peers.rounds.iter().map(|rounds| rounds.ratio.unwrap().estimate).collect();
        assert!(ratios.iter().all(|ratio| (ratio - 2.0).abs() < 1e-9), "{ratios:?}");
        assert_eq!([true, false], [peers.rounds[0].is_below(), peers.rounds[1].is_below()]);

        files::write(&file, text.replace("[20,10]", "[0,10]").as_bytes()).unwrap();
        assert!(read(&file).unwrap_err().to_string().contains("not positive"));
    }
}
