//! New against old: screening, confirmation, verdicts.

use std::time::Duration;

use anyhow::Result;

use super::{
    baseline::Baseline,
    detector::{Pair, Rules, Verdict, confirm},
    progress::Progress,
    result::{ComparedRow, Comparison, Method},
    session::{Measured, Patience, Session},
    statistics::{median, paired_ratio, unpaired_ratio},
};

/// Processes of a suspect where only recorded times are there to compare with.
const AGAIN: usize = 10;

/// Compares what was measured with a baseline, and runs suspects again.
pub(crate) fn compare(
    session: &mut Session,
    measured: &Measured,
    baseline: &Baseline,
    rules: &Rules,
    patience: Duration,
) -> Result<Comparison> {
    let method = if baseline.programs.is_some() { Method::Interleaved } else { Method::Recorded };
    let mut rows = match method {
        Method::Interleaved => screen_pairs(measured, rules),
        Method::Recorded => screen_recorded(measured, baseline, rules),
    };
    let suspects: Vec<String> = rows.iter().filter(|row| row.suspect).map(|row| row.row.clone()).collect();
    if !suspects.is_empty() {
        let progress = Progress::new("suspects", suspects.len());
        progress.say(&format!(
            "{} of {} rows are not shown to be within the tolerance and run again: {}",
            suspects.len(),
            rows.len(),
            suspects.join(", ")
        ));
        match method {
            Method::Interleaved => confirm_pairs(session, &suspects, &mut rows, rules, patience)?,
            Method::Recorded => confirm_recorded(session, &mut rows, baseline, rules)?,
        }
    }
    Ok(Comparison {
        baseline: baseline.name.clone(),
        baseline_commit: baseline.result.environment.commit.clone(),
        baseline_started: baseline.result.started.clone(),
        method,
        tolerance: rules.tolerance,
        rows,
    })
}

fn screen_pairs(measured: &Measured, rules: &Rules) -> Vec<ComparedRow> {
    let both = measured.new.iter().filter_map(|(row, new)| Some((row, new, measured.old.get(row)?)));
    both.map(|(row, new, old)| {
        let pairs: Vec<Pair> = new.iter().zip(old).map(|(new, old)| (median(new), median(old))).collect();
        compared(row, paired_ratio(&pairs, row), rules.is_suspect(&pairs))
    })
    .collect()
}

fn screen_recorded(measured: &Measured, baseline: &Baseline, rules: &Rules) -> Vec<ComparedRow> {
    let both = measured.new.iter().filter_map(|(row, new)| Some((row, new, baseline.result.row(row)?)));
    both.map(|(row, new, old)| {
        let new: Vec<f64> = new.iter().map(|batches| median(batches)).collect();
        let ratio = unpaired_ratio(&new, &old.processes_ns, row);
        compared(row, ratio, ratio.high > 1.0 + rules.tolerance)
    })
    .collect()
}

fn compared(row: &str, ratio: super::statistics::Interval, suspect: bool) -> ComparedRow {
    ComparedRow { row: row.to_owned(), ratio, screening: ratio, suspect, pairs: 0, verdict: Verdict::Clear }
}

fn confirm_pairs(
    session: &mut Session,
    suspects: &[String],
    rows: &mut [ComparedRow],
    rules: &Rules,
    patience: Duration,
) -> Result<()> {
    let most = rules.looks.last().copied().unwrap_or(0);
    let progress = Progress::new("confirming", suspects.len() * most);
    let mut patience = Patience::new(patience);
    let confirmed = confirm(suspects, rules, |row| {
        progress.step(row);
        patience.spend(row, || session.pair(row))
    })?;
    for confirmed in confirmed {
        let Some(row) = rows.iter_mut().find(|row| row.row == confirmed.row) else { continue };
        (row.pairs, row.verdict) = (confirmed.pairs.len(), confirmed.verdict);
        if row.pairs > 0 {
            row.ratio = paired_ratio(&confirmed.pairs, &row.row);
        }
    }
    Ok(())
}

fn confirm_recorded(
    session: &Session,
    rows: &mut [ComparedRow],
    baseline: &Baseline,
    rules: &Rules,
) -> Result<()> {
    let suspects = rows.iter().filter(|row| row.suspect).count();
    let progress = Progress::new("again", suspects * AGAIN);
    for row in rows.iter_mut().filter(|row| row.suspect) {
        let again = || {
            progress.step(&row.row);
            session.again(&row.row)
        };
        let new = std::iter::repeat_with(again).take(AGAIN).collect::<Result<Vec<f64>>>()?;
        let old = baseline.result.row(&row.row).map(|row| row.processes_ns.clone()).unwrap_or_default();
        row.ratio = unpaired_ratio(&new, &old, &row.row);
        if rules.is_slower_than_recorded(&new, &old, suspects) {
            row.verdict = Verdict::Regression;
        }
    }
    Ok(())
}

/// The table for the terminal; loud where there is a reason.
pub(crate) fn table(comparison: &Comparison) -> String {
    use std::fmt::Write as _;
    let mut text = String::new();
    let commit = comparison.baseline_commit.as_deref().unwrap_or("an unknown commit");
    let _ = writeln!(
        text,
        "\nAgainst `{}` ({commit}, {}), new ÷ old with 95 % intervals:",
        comparison.baseline, comparison.baseline_started
    );
    let width = comparison.rows.iter().map(|row| row.row.chars().count()).max().unwrap_or(0);
    for row in &comparison.rows {
        let verdict = match row.verdict {
            Verdict::Regression if row.pairs == 0 => "SLOWER THAN RECORDED".to_owned(),
            Verdict::Regression => format!("REGRESSION, confirmed by {} pairs", row.pairs),
            Verdict::Undecided => format!("undecided after {} pairs", row.pairs),
            Verdict::Clear if row.suspect => "was suspect, cleared".to_owned(),
            Verdict::Clear if row.ratio.high < 1.0 - comparison.tolerance => "faster".to_owned(),
            Verdict::Clear => String::new(),
        };
        let _ = writeln!(
            text,
            "  {:width$}  {:.3} [{:.3}, {:.3}]  {verdict}",
            row.row, row.ratio.estimate, row.ratio.low, row.ratio.high
        );
    }
    let slower: Vec<&str> = comparison
        .rows
        .iter()
        .filter(|row| row.verdict == Verdict::Regression)
        .map(|row| row.row.as_str())
        .collect();
    if slower.is_empty() {
        let _ = writeln!(text, "No regression beyond {:.0} %.", comparison.tolerance * 100.0);
    } else {
        let rule = "!".repeat(78);
        let _ = writeln!(text, "{rule}\n!!! {} SLOWER: {}", slower.len(), slower.join(", "));
        if comparison.method == Method::Recorded {
            let _ = writeln!(
                text,
                "!!! than recorded; the old program could not run, so the machine may be the reason"
            );
        }
        let _ = writeln!(text, "{rule}");
    }
    text
}
