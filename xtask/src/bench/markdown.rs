//! `BENCHMARKS.md`, from the results that the tree keeps in `benches/results`: what falls short first, then all rows.

use std::{
    fmt::Write as _,
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Result, ensure};
use clap::Args;

use super::{
    detector::Verdict,
    peers::{self, Rounds},
    published::Claim,
    result::{CheckedClaim, Row, RunResult},
    roofline::Bound,
    statistics::Interval,
    units,
};
use crate::files;

#[derive(Debug, Args)]
pub(crate) struct ReportArgs {
    /// Only say whether BENCHMARKS.md is what its sources give
    #[arg(long)]
    check: bool,

    /// Print one result as Markdown, for an issue, instead
    #[arg(long, value_name = "FILE", conflicts_with = "check")]
    paste: Option<PathBuf>,

    /// Put what benches/peers/suite.py --json wrote into a result of benches/results first, in the place of its peers
    #[arg(long, value_name = "FILE", requires = "into", conflicts_with_all = ["check", "paste"])]
    peers_from: Option<PathBuf>,

    /// The result that --peers-from is for
    #[arg(long, value_name = "RESULT", requires = "peers_from")]
    into: Option<PathBuf>,
}

pub(crate) fn run(workspace: &Path, args: &ReportArgs) -> Result<ExitCode> {
    if let Some(file) = &args.paste {
        print!("{}", paste(&RunResult::read(file)?));
        return Ok(ExitCode::SUCCESS);
    }
    if let Some((from, into)) = args.peers_from.as_ref().zip(args.into.as_ref()) {
        let mut result = RunResult::read(into)?;
        result.peers = Some(peers::read(from)?);
        files::write_json(into, &result)?;
    }
    let text = page(&results(&workspace.join("benches/results"))?);
    let place = workspace.join("BENCHMARKS.md");
    if !args.check {
        files::write(&place, text.as_bytes())?;
        println!("{}", place.display());
        return Ok(ExitCode::SUCCESS);
    }
    let is_same = std::fs::read_to_string(&place).is_ok_and(|there| there == text);
    ensure!(is_same, "BENCHMARKS.md is not what benches/results gives; run `cargo xtask bench report`");
    Ok(ExitCode::SUCCESS)
}

/// Results by the names of their files.
fn results(folder: &Path) -> Result<Vec<(String, RunResult)>> {
    let mut results = Vec::new();
    for entry in std::fs::read_dir(folder).into_iter().flatten() {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "json") {
            let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
            results.push((name, RunResult::read(&path)?));
        }
    }
    results.sort_by(|a, b| a.0.cmp(&b.0));
    Ok(results)
}

fn page(results: &[(String, RunResult)]) -> String {
    let mut text = "# Benchmarks\n\nMade by `cargo xtask bench report` from `benches/results`; nothing here is typed by hand.\n\
                    [docs/benchmarks.md](docs/benchmarks.md) says how it is measured and how to repeat it.\n\n"
        .to_owned();
    let short: Vec<String> = results.iter().flat_map(|(name, result)| shortfalls(name, result)).collect();
    text.push_str("## What falls short\n\n");
    if short.is_empty() {
        text.push_str(if results.is_empty() {
            "Nothing is measured yet.\n"
        } else {
            "Nothing that was measured.\n"
        });
    }
    for line in short {
        let _ = writeln!(text, "- {line}");
    }
    for (name, result) in results {
        text.push_str(&machine(name, result));
        text.push_str(&beside_others(result));
        text.push_str(&rows(result));
        text.push_str(&kept(result));
    }
    text
}

/// Every bar, published figure and claim that is missed.
fn shortfalls(name: &str, result: &RunResult) -> Vec<String> {
    let mut short = Vec::new();
    for rounds in result.peers.iter().flat_map(|peers| &peers.rounds).filter(|rounds| rounds.is_below()) {
        let ratio = rounds.ratio.map_or(f64::NAN, |ratio| ratio.estimate);
        let bar = rounds.bar.unwrap_or(f64::NAN);
        short.push(format!(
            "{name}: {} ({}), {} against {}: {}×, the bar is {bar}×",
            rounds.comparison,
            rounds.shape,
            rounds.ours,
            rounds.peer,
            units::digits(ratio)
        ));
    }
    for row in &result.rows {
        let Some(times) = row.times_published().filter(|times| *times <= 1.0) else { continue };
        let published = row.published.as_ref();
        let forbidden = row.limit_above_published().map_or_else(String::new, |least| {
            let work = row.bound.unwrap_or(Bound::Memory).work();
            format!("; forbidden by this machine's limit, {} for {work}", units::time(least))
        });
        short.push(format!(
            "{name}: `{}` takes {}, published {} ({}): {}×{forbidden}",
            row.row,
            units::time(row.median_ns),
            units::time(published.map_or(f64::NAN, |published| published.nanoseconds)),
            published.map_or("", |published| published.source.as_str()),
            units::digits(times)
        ));
    }
    for claim in result.claims.iter().filter(|claim| claim.verdict != Verdict::Clear) {
        let shown = match claim.verdict {
            Verdict::Undecided => "not decided by",
            _ => "not so by",
        };
        short.push(format!(
            "{name}: {}: {shown} {} pairs in turns, {} where at most {} is claimed (`{}` ÷ `{}`)",
            claim.claim.text,
            claim.pairs,
            ratio(claim),
            claim.claim.at_most,
            claim.claim.row,
            claim.claim.over
        ));
    }
    short
}

fn ratio(claim: &CheckedClaim) -> String {
    let Interval { estimate, low, high } = claim.ratio;
    format!("{estimate:.3} ({low:.3} – {high:.3})")
}

fn machine(name: &str, result: &RunResult) -> String {
    let environment = &result.environment;
    let mut facts = vec![format!("{}, {} cores", environment.cpu, environment.cores)];
    facts.extend(environment.gpu.clone().filter(|_| result.device != "cpu"));
    facts.push(environment.system.clone());
    facts.extend(environment.rustc.clone());
    let commit = environment.commit.as_deref().unwrap_or("unknown");
    let dirty = if environment.dirty { " with changes" } else { "" };
    let mut text = format!(
        "\n## {name}\n\n{}. {} at commit {commit}{dirty}, on `{}`, {} processes of each group{}.",
        facts.join("; "),
        result.started.split('T').next().unwrap_or_default(),
        result.device,
        result.repeat,
        if result.quick { ", quick" } else { "" },
    );
    if let Some((before, after)) = result.load_before.zip(result.load_after) {
        let _ = write!(text, " Load average {before:.1} before, {after:.1} after.");
    }
    if let Some(limits) = &result.limits {
        let (memory, arithmetic) = (units::rate(limits.main_memory(), "B"), limits.arithmetic());
        let _ = write!(text, " Limits of this machine, measured: {memory} from memory, {arithmetic}.");
    }
    text + "\n"
}

fn beside_others(result: &RunResult) -> String {
    let Some(peers) = &result.peers else { return String::new() };
    let origin = peers.origin.as_ref().map_or_else(String::new, |origin| {
        let day = origin.date.split('T').next().unwrap_or_default();
        format!(", {day} at commit {}", origin.commit.as_deref().unwrap_or("unknown"))
    });
    let mut text = format!(
        "\nBeside other programs, in turns{origin}; the ratio says how many times better ours is.\n\n\
         | comparison | shape | ours | peer | ratio | 95 % | bar |\n|---|---|---|---|--:|---|--:|\n"
    );
    for rounds in &peers.rounds {
        text.push_str(&peer_line(rounds));
    }
    let versions: Vec<String> = peers
        .peers
        .iter()
        .map(|peer| match &peer.version {
            Some(version) if peer.status == "measured" => format!("{} {version}", peer.name),
            _ => format!("{} ({})", peer.name, peer.status),
        })
        .collect();
    let _ = writeln!(text, "\nPeers: {}.", versions.join(", "));
    let gaps: Vec<String> =
        peers.gaps().map(|gap| format!("{}, {} ({})", gap.comparison, gap.program, gap.why)).collect();
    if !gaps.is_empty() {
        let _ = writeln!(text, "\nLeft out: {}.", gaps.join("; "));
    }
    text
}

fn peer_line(rounds: &Rounds) -> String {
    let (ours, theirs): (Vec<f64>, Vec<f64>) = rounds.pairs.iter().copied().unzip();
    let median = |values: &[f64]| units::digits(super::statistics::median(values));
    let Some(ratio) = rounds.ratio else { return String::new() };
    let mark = if rounds.is_below() { " ✗" } else { "" };
    format!(
        "| {} | {} | {}: {} {unit} | {}: {} {unit} | {}×{mark} | {} – {} | {} |\n",
        rounds.comparison,
        rounds.shape,
        rounds.ours,
        median(&ours),
        rounds.peer,
        median(&theirs),
        units::digits(ratio.estimate),
        units::digits(ratio.low),
        units::digits(ratio.high),
        rounds.bar.map_or_else(|| "–".to_owned(), |bar| format!("{}×", (100.0 * bar).round() / 100.0)),
        unit = rounds.unit,
    )
}

fn rows(result: &RunResult) -> String {
    let mut text =
        "\n| row | median | 95 % | spread | published | faster | of limit |\n|---|--:|---|--:|--:|--:|--:|\n"
            .to_owned();
    for row in &result.rows {
        let _ = writeln!(
            text,
            "| `{}` | {} | {} – {} | {} | {} | {} | {} |",
            row.row,
            units::time(row.median_ns),
            units::time(row.interval_ns[0]),
            units::time(row.interval_ns[1]),
            units::percent(row.spread),
            row.published.as_ref().map_or_else(String::new, |published| units::time(published.nanoseconds)),
            faster(row),
            row.share_of_limit.map_or_else(String::new, units::percent),
        );
    }
    text.push_str(
        "\nPublished figures come from the machines that they name; `faster` compares across machines.\n",
    );
    text
}

fn faster(row: &Row) -> String {
    let Some(times) = row.times_published() else { return String::new() };
    format!("{}×{}", units::digits(times), if times <= 1.0 { " ✗" } else { "" })
}

/// Claims about ratios of rows.
fn kept(result: &RunResult) -> String {
    if result.claims.is_empty() {
        return String::new();
    }
    let mut text = "\n| claim | ratio, 95 % | at most | pairs in turns |\n|---|--:|--:|--:|\n".to_owned();
    for claim in &result.claims {
        let mark = match claim.verdict {
            Verdict::Clear => "",
            Verdict::Regression => " ✗",
            Verdict::Undecided => " ?",
        };
        let pairs = if claim.pairs > 0 { claim.pairs.to_string() } else { String::new() };
        let Claim { row, over, at_most, text: what } = &claim.claim;
        let _ =
            writeln!(text, "| {what} (`{row}` ÷ `{over}`) | {}{mark} | {at_most} | {pairs} |", ratio(claim));
    }
    text
}

/// One result for an issue.
fn paste(result: &RunResult) -> String {
    let name = result.environment.gpu.clone().filter(|_| result.device != "cpu");
    let name = name.unwrap_or_else(|| result.environment.cpu.clone());
    let short = shortfalls(&name, result);
    let mut text = format!("<details><summary>metal-candle benches: {name}</summary>\n");
    text.push_str(&machine(&name, result));
    if !short.is_empty() {
        let _ = writeln!(text, "\nFalls short:\n\n- {}", short.join("\n- "));
    }
    text.push_str(&beside_others(result));
    text.push_str(&rows(result));
    text.push_str(&kept(result));
    text + "\n</details>\n"
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::published::Published;

    fn result() -> RunResult {
        let mut slow = Row::new("a/slow", "micro", vec![vec![200.0]]);
        slow.published = Some(Published { nanoseconds: 100.0, source: "other 1.0".into() });
        let mut fast = Row::new("a/fast", "micro", vec![vec![50.0]]);
        fast.published = Some(Published { nanoseconds: 100.0, source: "other 1.0".into() });
        let mut forbidden = Row::new("a/forbidden", "micro", vec![vec![400.0]]);
        forbidden.published = Some(Published { nanoseconds: 100.0, source: "other 1.0".into() });
        (forbidden.share_of_limit, forbidden.bound) = (Some(0.5), Some(Bound::Memory));
        let mut possible = Row { row: "a/possible".into(), ..forbidden.clone() };
        possible.share_of_limit = Some(0.2);
        let claim = |row: &str, at_most, estimate, verdict| CheckedClaim {
            claim: Claim { row: row.into(), over: "a/over".into(), at_most, text: format!("{row} is fast") },
            ratio: Interval { estimate, low: estimate - 0.01, high: estimate + 0.01 },
            pairs: 20,
            verdict,
        };
        let claims = vec![
            claim("a/slow", 2.0, 4.0, Verdict::Regression),
            claim("a/open", 1.0, 1.005, Verdict::Undecided),
            claim("a/fast", 1.0, 0.5, Verdict::Clear),
        ];
        RunResult { rows: vec![slow, fast, forbidden, possible], claims, ..RunResult::default() }
    }

    #[test]
    fn what_falls_short_comes_first_and_nothing_else_does() {
        let text = page(&[("machine".into(), result())]);
        let short = text.split("## machine").next().unwrap();
        assert!(short.contains("`a/slow` takes 200 ns, published 100 ns (other 1.0): 0.50×"), "{short}");
        let limit = "; forbidden by this machine's limit, 200 ns for what the row moves\n";
        assert!(
            short
                .contains(&format!("`a/forbidden` takes 400 ns, published 100 ns (other 1.0): 0.25×{limit}"))
        );
        assert!(
            short.contains("`a/possible` takes 400 ns, published 100 ns (other 1.0): 0.25×\n"),
            "{short}"
        );
        let broken =
            "a/slow is fast: not so by 20 pairs in turns, 4.000 (3.990 – 4.010) where at most 2 is claimed";
        assert!(short.contains(broken), "{short}");
        assert!(short.contains("a/open is fast: not decided by 20 pairs in turns, 1.005"), "{short}");
        assert!(!short.contains("a/fast` takes") && !short.contains("a/fast is fast"), "{short}");
        assert!(text.contains("| 0.500 (0.490 – 0.510) | 1 | 20 |"), "{text}");
        assert!(text.contains("| `a/fast` | 50.0 ns |") && text.contains("| 2.00× |"), "{text}");
    }

    #[test]
    fn a_tree_without_results_says_so() {
        assert!(page(&[]).contains("Nothing is measured yet."));
    }
}
