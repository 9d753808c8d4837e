//! Figures that others published: `published.tsv`.

/// A figure that a row is to beat.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Published<'a> {
    /// The row.
    pub row: &'a str,
    /// The best time that was published, in nanoseconds.
    pub nanoseconds: f64,
    /// By what, where.
    pub source: &'a str,
}

/// All of them.
///
/// # Panics
/// If a line of the file is damaged.
pub fn published() -> impl Iterator<Item = Published<'static>> {
    lines(include_str!("../published.tsv")).map(|[row, nanoseconds, source]| Published {
        row,
        nanoseconds: nanoseconds.parse().expect("a time in nanoseconds"),
        source,
    })
}

/// What the ratio of the times of two rows is to be.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Claim<'a> {
    /// The row whose time is divided.
    pub row: &'a str,
    /// By that of this one.
    pub over: &'a str,
    /// The largest ratio that keeps the claim.
    pub at_most: f64,
    /// What is claimed.
    pub text: &'a str,
}

/// All of them.
///
/// # Panics
/// If a line of the file is damaged.
pub fn claims() -> impl Iterator<Item = Claim<'static>> {
    lines(include_str!("../claims.tsv")).map(|[row, over, at_most, text]| Claim {
        row,
        over,
        at_most: at_most.parse().expect("a ratio"),
        text,
    })
}

/// The fields of all lines but the first, which names them.
fn lines<const COUNT: usize>(text: &str) -> impl Iterator<Item = [&str; COUNT]> {
    text.lines().skip(1).map(|line| {
        let fields: Vec<&str> = line.split('\t').collect();
        fields.try_into().expect("as many fields as the first line names")
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::rows;

    #[test]
    fn every_row_with_a_figure_or_a_claim_is_measured() {
        let rows = rows::all();
        let ids: BTreeSet<&str> = rows.iter().map(|row| row.id.as_str()).collect();
        let mut seen = BTreeSet::new();
        for figure in published() {
            assert!(ids.contains(figure.row), "no table has the row {}", figure.row);
            assert!(figure.nanoseconds > 0. && !figure.source.is_empty(), "{figure:?}");
            assert!(seen.insert(figure.row), "two figures for {}", figure.row);
        }
        for claim in claims() {
            assert!(ids.contains(claim.row) && ids.contains(claim.over), "no table has a row of {claim:?}");
            assert!(claim.at_most > 0. && !claim.text.is_empty(), "{claim:?}");
        }
    }
}
