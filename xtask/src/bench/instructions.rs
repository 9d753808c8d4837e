//! Instructions of single operations, counted by callgrind: a figure without noise, for machines that cannot time.
//!
//! The count is of one thread with AVX2, which is what valgrind knows, and of the build that tests use: there the kernels are
//! optimised as in a release, and CI has them already. What a row's inputs cost falls out: (count(5) - count(1)) / 4.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
    sync::{
        atomic::{AtomicUsize, Ordering},
        mpsc,
    },
    thread,
};

use anyhow::{Context as _, Result, bail, ensure};
use clap::Args;

use super::{programs, progress::Progress, units};
use crate::files;

/// The same program's counts differ below 0.1 % from run to run (hash seeds, addresses, the C library's version). A change
/// elsewhere in the kernels moves functions between codegen units, and with that what is inlined: up to 4.3 % were seen. 6 % is
/// above both.
const TOLERANCE: f64 = 0.06;

/// What stands for "not on this machine", as in `.ci/run`.
const NOT_HERE: u8 = 3;

const ITERATIONS: u64 = 5;

#[derive(Debug, Args)]
pub(crate) struct InstructionsArgs {
    /// Write what was counted into benches/instructions.tsv
    #[arg(long)]
    update: bool,

    /// Only rows whose name contains this
    #[arg(long, value_name = "TEXT", conflicts_with = "update")]
    filter: Option<String>,

    /// The program `instructions`, instead of building it
    #[arg(long, value_name = "FILE")]
    program: Option<PathBuf>,
}

/// What stands in the file.
#[derive(Debug, Default, PartialEq)]
struct Counts {
    rustc: String,
    by_row: BTreeMap<String, u64>,
}

#[derive(Debug, PartialEq, Eq)]
enum Outcome {
    /// Everything as recorded.
    Same,
    /// More instructions than recorded, or a row that is not recorded or not there.
    Worse,
    /// Fewer than recorded: the file is to be updated so that this cannot be lost again.
    Better,
}

pub(crate) fn run(workspace: &Path, args: &InstructionsArgs) -> Result<ExitCode> {
    let file = workspace.join("benches/instructions.tsv");
    if std::env::consts::ARCH != "x86_64" {
        eprintln!("instructions: the counts are of x86-64 with AVX2, this is {}", std::env::consts::ARCH);
        return Ok(ExitCode::from(NOT_HERE));
    }
    if Command::new("valgrind").arg("--version").output().is_err() {
        eprintln!("instructions: no valgrind; install it (apt-get install valgrind)");
        return Ok(ExitCode::from(NOT_HERE));
    }
    ensure!(
        args.update || file.is_file(),
        "{} is not there; `cargo xtask bench instructions --update` makes it",
        file.display()
    );
    let recorded = if args.update { Counts::default() } else { Counts::parse(&files::read_text(&file)?)? };
    let rustc = rustc()?;
    if !args.update && recorded.rustc != rustc {
        eprintln!(
            "instructions: benches/instructions.tsv was counted with {}, this is {rustc}: a difference would not be \
             the change's. Count the parent commit and this one, or `cargo xtask bench instructions --update`",
            recorded.rustc
        );
        return Ok(ExitCode::from(NOT_HERE));
    }
    let program =
        args.program.clone().map_or_else(|| programs::build_for_counting(workspace, "instructions"), Ok)?;
    let counted = Counts { rustc, by_row: count_all(&program, args.filter.as_deref())? };
    if args.update {
        files::write(&file, counted.text().as_bytes())?;
        println!("{}: {} rows", file.display(), counted.by_row.len());
        return Ok(ExitCode::SUCCESS);
    }
    let (outcome, text) = compare(&recorded, &counted, args.filter.as_deref());
    println!("{text}");
    Ok(match outcome {
        Outcome::Same => ExitCode::SUCCESS,
        Outcome::Worse | Outcome::Better => ExitCode::from(1),
    })
}

/// Every row that can be counted, on all cores: counts do not mind company.
fn count_all(program: &Path, filter: Option<&str>) -> Result<BTreeMap<String, u64>> {
    let listed = Command::new(program).arg("--list").output();
    let listed = listed.with_context(|| format!("cannot start {}", program.display()))?;
    ensure!(listed.status.success(), "{} --list failed", program.display());
    let listed = String::from_utf8_lossy(&listed.stdout).into_owned();
    let rows: Vec<&str> = listed.lines().filter(|row| filter.is_none_or(|part| row.contains(part))).collect();
    let progress = Progress::new("counting", rows.len());
    let (next, (sender, receiver)) = (AtomicUsize::new(0), mpsc::channel());
    thread::scope(|scope| {
        for _ in 0..thread::available_parallelism().map_or(1, usize::from) {
            let (rows, next, sender) = (&rows, &next, sender.clone());
            scope.spawn(move || {
                while let Some(row) = rows.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let counted = count_iteration(program, row).map(|count| ((*row).to_owned(), count));
                    if sender.send(counted).is_err() {
                        return; // another row failed
                    }
                }
            });
        }
        drop(sender);
        receiver
            .iter()
            .inspect(|counted| progress.step(counted.as_ref().map_or("", |(row, _)| row)))
            .collect()
    })
}

/// Instructions of one iteration of a row.
fn count_iteration(program: &Path, row: &str) -> Result<u64> {
    let (one, many) = (count(program, row, 1)?, count(program, row, ITERATIONS)?);
    let several = many.checked_sub(one).with_context(|| {
        format!("{row}: {ITERATIONS} iterations took fewer instructions than one; it does not repeat itself")
    })?;
    Ok(several / (ITERATIONS - 1))
}

fn count(program: &Path, row: &str, iterations: u64) -> Result<u64> {
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("callgrind.out");
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--quiet"])
        .arg(format!("--callgrind-out-file={}", file.display()))
        .arg(program)
        .args([row, &iterations.to_string()])
        .env("METAL_CANDLE_SIMD", "avx2")
        .env("METAL_CANDLE_THREADS", "1")
        .output()
        .context("cannot start valgrind")?;
    if !output.status.success() {
        bail!("{row} under callgrind: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    total(&files::read_text(&file)?).with_context(|| format!("{row}: callgrind wrote no total"))
}

/// The total in a file of callgrind.
fn total(text: &str) -> Option<u64> {
    text.lines()
        .find_map(|line| line.strip_prefix("totals:").or_else(|| line.strip_prefix("summary:")))?
        .trim()
        .parse()
        .ok()
}

fn rustc() -> Result<String> {
    let output = Command::new("rustc").arg("--version").output().context("cannot start rustc")?;
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

impl Counts {
    fn parse(text: &str) -> Result<Self> {
        let mut counts = Self::default();
        for line in text.lines() {
            if let Some(rustc) = line.strip_prefix("# rustc: ") {
                rustc.clone_into(&mut counts.rustc);
            } else if !line.starts_with('#') {
                let (row, count) =
                    line.split_once('\t').with_context(|| format!("instructions.tsv: {line}"))?;
                counts.by_row.insert(
                    row.to_owned(),
                    count.parse().with_context(|| format!("instructions.tsv: {line}"))?,
                );
            }
        }
        Ok(counts)
    }

    fn text(&self) -> String {
        let mut text = "# Instructions of one iteration, one thread, AVX2, as tests are built. Made by `cargo xtask bench instructions --update`.\n".to_owned();
        let _ = writeln!(text, "# rustc: {}", self.rustc);
        for (row, count) in &self.by_row {
            let _ = writeln!(text, "{row}\t{count}");
        }
        text
    }
}

fn compare(recorded: &Counts, counted: &Counts, filter: Option<&str>) -> (Outcome, String) {
    let mut text = String::new();
    let (mut worse, mut better) = (0, 0);
    for (row, count) in &counted.by_row {
        let Some(before) = recorded.by_row.get(row) else {
            worse += 1;
            let _ = writeln!(text, "NOT RECORDED  {row}: {count}");
            continue;
        };
        let ratio = *count as f64 / (*before).max(1) as f64;
        let word = if ratio > 1.0 + TOLERANCE {
            worse += 1;
            "MORE"
        } else if ratio < 1.0 - TOLERANCE {
            better += 1;
            "fewer"
        } else {
            continue;
        };
        let _ = writeln!(
            text,
            "{word:5} {:>8}  {row}: {before} -> {count}",
            format!("{:+.1} %", (ratio - 1.0) * 100.0)
        );
    }
    for row in recorded.by_row.keys() {
        if !counted.by_row.contains_key(row) && filter.is_none_or(|part| row.contains(part)) {
            worse += 1;
            let _ = writeln!(text, "NO SUCH ROW   {row}");
        }
    }
    let rows = counted.by_row.len();
    let within = units::percent(TOLERANCE);
    let (outcome, last) = if worse > 0 {
        (
            Outcome::Worse,
            format!(
                "{worse} of {rows} rows need more than recorded, or are not recorded; if that is meant, say why and run"
            ),
        )
    } else if better > 0 {
        (Outcome::Better, format!("{better} of {rows} rows need fewer than recorded; keep that with"))
    } else {
        (Outcome::Same, format!("{rows} rows, all within {within} of benches/instructions.tsv"))
    };
    text.push_str(&last);
    if outcome != Outcome::Same {
        text.push_str(" `cargo xtask bench instructions --update`");
    }
    (outcome, text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(rows: &[(&str, u64)]) -> Counts {
        Counts {
            rustc: "rustc 1.0".into(),
            by_row: rows.iter().map(|(row, count)| ((*row).into(), *count)).collect(),
        }
    }

    #[test]
    fn the_file_is_read_as_it_is_written() {
        let counted = counts(&[("a/b", 1000), ("c/d e", 7)]);
        assert_eq!(Counts::parse(&counted.text()).unwrap(), counted);
        assert!(Counts::parse("a/b 1000").is_err());
    }

    #[test]
    fn more_fails_fewer_asks_for_an_update_and_little_is_nothing() {
        let recorded = counts(&[("a/b", 1000)]);
        let outcome = |rows: &[(&str, u64)]| compare(&recorded, &counts(rows), None).0;
        assert_eq!(outcome(&[("a/b", 1059)]), Outcome::Same);
        assert_eq!(outcome(&[("a/b", 941)]), Outcome::Same);
        assert_eq!(outcome(&[("a/b", 1061)]), Outcome::Worse);
        assert_eq!(outcome(&[("a/b", 939)]), Outcome::Better);
        assert_eq!(outcome(&[("a/b", 1000), ("new/row", 1)]), Outcome::Worse);
        assert_eq!(outcome(&[]), Outcome::Worse);
        assert_eq!(compare(&recorded, &counts(&[]), Some("c")).0, Outcome::Same);
    }

    #[test]
    fn callgrinds_total_is_found() {
        assert_eq!(total("events: Ir\nsummary: 12345\n0 1\ntotals: 12346\n"), Some(12345));
        assert_eq!(total("nothing"), None);
    }
}
