//! What criterion leaves behind: `GROUP/NAME/new/{benchmark,sample}.json`.

use std::{collections::BTreeMap, path::Path};

use anyhow::{Context as _, Result, ensure};
use serde::Deserialize;

use crate::files;

#[derive(Deserialize)]
struct Benchmark {
    full_id: String,
}

#[derive(Deserialize)]
struct Sample {
    iters: Vec<f64>,
    /// Nanoseconds of each batch of so many iterations.
    times: Vec<f64>,
}

/// Nanoseconds per iteration of every batch, by row.
pub(crate) type Batches = BTreeMap<String, Vec<f64>>;

/// All rows below a `CRITERION_HOME`.
pub(crate) fn read(home: &Path) -> Result<Batches> {
    let mut batches = Batches::new();
    collect(home, &mut batches)?;
    Ok(batches)
}

fn collect(folder: &Path, batches: &mut Batches) -> Result<()> {
    let entries = std::fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))?;
    for entry in entries {
        let path = entry?.path();
        if !path.is_dir() {
            continue;
        }
        if !path.ends_with("new") || !path.join("sample.json").is_file() {
            collect(&path, batches)?;
            continue;
        }
        let benchmark: Benchmark = files::read_json(&path.join("benchmark.json"))?;
        let sample: Sample = files::read_json(&path.join("sample.json"))?;
        let per_iteration: Vec<f64> =
            sample.times.iter().zip(&sample.iters).map(|(time, count)| round(time / count)).collect();
        ensure!(
            !per_iteration.is_empty() && per_iteration.iter().all(|time| time.is_finite() && *time > 0.0),
            "{}: criterion timed {} in no time; is the row optimised away?",
            path.display(),
            benchmark.full_id
        );
        batches.insert(benchmark.full_id, per_iteration);
    }
    Ok(())
}

/// Picoseconds are enough.
fn round(nanoseconds: f64) -> f64 {
    (nanoseconds * 1e3).round() / 1e3
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(home: &Path, folder: &str, id: &str, sample: &str) {
        let folder = home.join(folder).join("new");
        files::write(&folder.join("benchmark.json"), format!(r#"{{"full_id":"{id}"}}"#).as_bytes()).unwrap();
        files::write(&folder.join("sample.json"), sample.as_bytes()).unwrap();
    }

    #[test]
    fn rows_are_found_by_their_id_whatever_the_folder() {
        let home = tempfile::tempdir().unwrap();
        row(home.path(), "a/b_c", "a/b c", r#"{"sampling_mode":"Linear","iters":[1,2],"times":[10,30]}"#);
        row(home.path(), "g/new", "g/new", r#"{"iters":[4],"times":[2]}"#);
        let batches = read(home.path()).unwrap();
        assert_eq!(batches["a/b c"], [10.0, 15.0]);
        assert_eq!(batches["g/new"], [0.5]);
        assert_eq!(batches.len(), 2);
    }

    #[test]
    fn a_row_without_time_is_an_error() {
        let home = tempfile::tempdir().unwrap();
        row(home.path(), "a/b", "a/b", r#"{"iters":[1000],"times":[0]}"#);
        assert!(read(home.path()).unwrap_err().to_string().contains("optimised away"));
    }
}
