//! `BENCHMARKS.md`, from the results that the tree keeps in `benches/results`.
use anyhow::Result;
use clap::Args;
use std::{path::Path, process::ExitCode};
#[derive(Debug, Args)]
pub(crate) struct ReportArgs {}
pub(crate) fn run(_: &Path, _: &ReportArgs) -> Result<ExitCode> {
    Ok(ExitCode::SUCCESS)
}
