//! Figures that others published for rows of the same name, and what ratios of rows are to be: two tables of the benches.

use std::path::Path;

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};

use crate::files;

/// A row's best published time.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Published {
    pub(crate) nanoseconds: f64,
    /// By what, where: another machine, usually.
    pub(crate) source: String,
}

/// `time(row) / time(over)` is to be at most this.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Claim {
    pub(crate) row: String,
    pub(crate) over: String,
    pub(crate) at_most: f64,
    pub(crate) text: String,
}

/// By row, in the order of the table.
pub(crate) fn published(workspace: &Path) -> Result<Vec<(String, Published)>> {
    table(&workspace.join("benches/published.tsv"), |fields| {
        let [row, nanoseconds, source] = fields else { return None };
        let published = Published { nanoseconds: nanoseconds.parse().ok()?, source: (*source).to_owned() };
        Some(((*row).to_owned(), published))
    })
}

pub(crate) fn claims(workspace: &Path) -> Result<Vec<Claim>> {
    table(&workspace.join("benches/claims.tsv"), |fields| {
        let [row, over, at_most, text] = fields else { return None };
        let at_most = at_most.parse().ok()?;
        Some(Claim { row: (*row).into(), over: (*over).into(), at_most, text: (*text).into() })
    })
}

fn table<T>(path: &Path, parse: impl Fn(&[&str]) -> Option<T>) -> Result<Vec<T>> {
    let text = files::read_text(path)?;
    let lines = text.lines().enumerate().skip(1).filter(|(_, line)| !line.is_empty());
    lines
        .map(|(index, line)| {
            let fields: Vec<&str> = line.split('\t').collect();
            parse(&fields)
                .with_context(|| format!("{}, line {}: not what line 1 names", path.display(), index + 1))
        })
        .collect()
}
