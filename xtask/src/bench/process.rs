//! One start of a bench program.

use std::{
    path::Path,
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, bail};

use super::{
    criterion::{self, Batches},
    random::Random,
    result::Counters,
};

const SLOWER: &str = "METAL_CANDLE_BENCH_SLOWER";

/// How long a process measures each row. Groups of slow rows bring settings of their own, which win.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Pace {
    warm_up_seconds: f64,
    measurement_seconds: f64,
    batches: usize,
}

impl Pace {
    /// Processes are the evidence, so there are more of them rather than longer ones.
    pub(crate) const NORMAL: Self = Self { warm_up_seconds: 0.1, measurement_seconds: 0.4, batches: 20 };
    pub(crate) const QUICK: Self = Self { warm_up_seconds: 0.05, measurement_seconds: 0.15, batches: 10 };
}

/// Which of the two programs that a comparison has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Side {
    New,
    /// Planted slowdowns are not for the baseline.
    Old,
}

/// What all processes of a run share.
#[derive(Debug, Clone)]
pub(crate) struct Setup {
    pub(crate) device: String,
    pub(crate) pace: Pace,
    /// Nothing else runs on a core while the bench does (Linux, where the system allows it).
    pub(crate) realtime: bool,
    /// What the new program gets as METAL_CANDLE_BENCH_SLOWER.
    pub(crate) slower: Option<String>,
}

impl Setup {
    /// Fails where the system does not allow real-time priority.
    pub(crate) fn check_realtime(&self) -> Result<()> {
        let allowed = Command::new("chrt").args(["-f", "1", "true"]).stderr(Stdio::null()).status();
        if self.realtime && !allowed.is_ok_and(|status| status.success()) {
            bail!(
                "--realtime: this system does not allow it; it takes Linux, `chrt` of util-linux, and root or \
                 CAP_SYS_NICE. Leave it out, and measure while nothing else runs"
            );
        }
        Ok(())
    }

    pub(crate) fn command(&self, program: &Path) -> Command {
        if !self.realtime {
            return Command::new(program);
        }
        let mut command = Command::new("chrt");
        command.args(["-f", "1"]).arg(program);
        command
    }

    /// The batches of these rows of a program, in a fresh process.
    pub(crate) fn run(&self, program: &Path, rows: &[String], side: Side) -> Result<Batches> {
        Ok(self.start(program, rows, side, None)?.0)
    }

    /// The same, and what the rows move, compute and ask for.
    pub(crate) fn run_counting(&self, program: &Path, rows: &[String]) -> Result<(Batches, Vec<Counters>)> {
        let folder = tempfile::tempdir()?;
        self.start(program, rows, Side::New, Some(&folder.path().join("counters.jsonl")))
    }

    fn start(
        &self,
        program: &Path,
        rows: &[String],
        side: Side,
        counters: Option<&Path>,
    ) -> Result<(Batches, Vec<Counters>)> {
        // The length of this path is on the heap too: a new one each time makes where things lie a part of the noise
        // between processes, instead of the same accident in all of them.
        let moment = chrono::Utc::now().timestamp_subsec_nanos();
        let home = tempfile::Builder::new().rand_bytes(6 + Random::new(moment.into()).below(90)).tempdir()?;
        let mut command = self.command(program);
        command.args(["--bench", "--noplot"]).arg(exactly(rows));
        command.args(["--warm-up-time", &self.pace.warm_up_seconds.to_string()]);
        command.args(["--measurement-time", &self.pace.measurement_seconds.to_string()]);
        command.args(["--sample-size", &self.pace.batches.to_string()]);
        command.env("CRITERION_HOME", home.path()).env("METAL_CANDLE_BENCH_DEVICE", &self.device);
        command.env_remove("METAL_CANDLE_BENCH_COUNTERS");
        if let Some(file) = counters {
            command.env("METAL_CANDLE_BENCH_COUNTERS", file);
        }
        match (side, &self.slower) {
            (_, None) => _ = command.env_remove(SLOWER),
            (Side::New, Some(slower)) => _ = command.env(SLOWER, slower),
            (Side::Old, Some(slower)) => _ = command.env(SLOWER, not_slower(slower)),
        }
        let output = command
            .stdin(Stdio::null())
            .output()
            .with_context(|| format!("cannot start {}", program.display()))?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            let last: Vec<&str> = said.lines().filter(|line| !line.starts_with("Benchmarking")).collect();
            bail!(
                "{} ended with {} while it measured {}:\n{}",
                program.display(),
                output.status,
                rows.join(", "),
                last[last.len().saturating_sub(12)..].join("\n")
            );
        }
        let counted =
            counters.filter(|file| file.is_file()).map(read_counters).transpose()?.unwrap_or_default();
        Ok((criterion::read(home.path())?, counted))
    }
}

fn read_counters(file: &Path) -> Result<Vec<Counters>> {
    let text = crate::files::read_text(file)?;
    let parse =
        |line| serde_json::from_str(line).with_context(|| format!("counters of a bench program: {line}"));
    text.lines().map(parse).collect()
}

/// The same rows, each slowed down by nothing, in as many characters: the text lies on the heap as well.
fn not_slower(slower: &str) -> String {
    let one = |part: &str| match part.rsplit_once('=') {
        Some((row, factor)) => {
            let zeros = "0".repeat(factor.len().saturating_sub(2));
            format!("{row}=1{}{zeros}", if factor.len() > 1 { "." } else { "" })
        }
        None => part.to_owned(),
    };
    slower.split(',').map(one).collect::<Vec<_>>().join(",")
}

/// The regular expression that matches these rows and no others.
fn exactly(rows: &[String]) -> String {
    let escape = |row: &String| -> String {
        row.chars()
            .flat_map(|character| {
                let is_plain =
                    character.is_alphanumeric() || "_/ ".contains(character) || !character.is_ascii();
                (!is_plain).then_some('\\').into_iter().chain([character])
            })
            .collect()
    };
    format!("^({})$", rows.iter().map(escape).collect::<Vec<_>>().join("|"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_name_rows_exactly() {
        let rows = ["a/b".to_owned(), "qwen2.5-0.5b/x (y)".to_owned()];
        assert_eq!(exactly(&rows), r"^(a/b|qwen2\.5\-0\.5b/x \(y\))$");
    }

    #[test]
    fn the_old_program_is_slowed_down_by_nothing_in_as_many_characters() {
        assert_eq!(not_slower("a/b=1.05,c/d=2"), "a/b=1.00,c/d=1");
    }

    /// A program that is a script stands in for criterion's: it gets what was promised, and its end is told.
    #[test]
    fn a_process_gets_a_home_of_its_own_and_tells_why_it_failed() {
        let folder = tempfile::tempdir().unwrap();
        let script = |name: &str, text: &str| {
            let path = folder.path().join(name);
            crate::files::write(&path, text.as_bytes()).unwrap();
            std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
            path
        };
        let good = script(
            "good",
            "#!/bin/sh\n[ -z \"$METAL_CANDLE_BENCH_SLOWER\" ] || exit 9\nmkdir -p \"$CRITERION_HOME/a/b/new\"\ncd \"$CRITERION_HOME/a/b/new\"\n\
             echo '{\"full_id\":\"a/b\"}' >benchmark.json\necho '{\"iters\":[2],\"times\":[10]}' >sample.json\n\
             [ -z \"$METAL_CANDLE_BENCH_COUNTERS\" ] || echo '{\"row\":\"a/b\",\"bytes\":8,\"flops\":null,\"units\":{\"tokens\":3}}' >\"$METAL_CANDLE_BENCH_COUNTERS\"\n",
        );
        let setup = Setup { device: "cpu".into(), pace: Pace::QUICK, realtime: false, slower: None };
        let rows = ["a/b".to_owned()];
        assert_eq!(setup.run(&good, &rows, Side::Old).unwrap()["a/b"], [5.0]);
        let (_, counters) = setup.run_counting(&good, &rows).unwrap();
        assert_eq!((counters[0].bytes, counters[0].units["tokens"]), (Some(8.0), 3.0));
        let bad =
            script("bad", "#!/bin/sh\necho Benchmarking a/b >&2\necho the device is gone >&2\nexit 3\n");
        let error = setup.run(&bad, &rows, Side::New).unwrap_err().to_string();
        assert!(error.contains("exit status: 3") && error.ends_with("a/b:\nthe device is gone"), "{error}");
    }
}
