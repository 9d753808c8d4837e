//! The table for the terminal.

use std::fmt::Write as _;

use super::{result::RunResult, units};

pub(crate) fn table(result: &RunResult) -> String {
    let mut text = String::new();
    let width = result.rows.iter().map(|row| row.row.chars().count()).max().unwrap_or(0);
    let _ = writeln!(
        text,
        "{:width$}  {:>9}  {:>21}  {:>7}  {:>9}  {:>9}",
        "row", "median", "95 %", "spread", "published", "of limit"
    );
    for row in &result.rows {
        let interval = format!("{} – {}", units::time(row.interval_ns[0]), units::time(row.interval_ns[1]));
        let _ = writeln!(
            text,
            "{:width$}  {:>9}  {interval:>21}  {:>7}  {:>9}  {:>9}",
            row.row,
            units::time(row.median_ns),
            units::percent(row.spread),
            row.times_published().map_or(String::new(), |times| format!("{}×", units::digits(times))),
            row.share_of_limit.map_or(String::new(), units::percent),
        );
    }
    let _ = write!(
        text,
        "published: how many times faster than the published figure, which is of another machine."
    );
    if let Some(limits) = &result.limits {
        let _ = write!(
            text,
            "\nlimits: memory {}, arithmetic {}",
            units::rate(limits.main_memory(), "B"),
            limits.arithmetic()
        );
    }
    text
}
