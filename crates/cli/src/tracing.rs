//! `--trace FILE`: what ran and when, as a file for a trace viewer and as a table on stderr.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

use anyhow::{Context as _, Result, bail};
use metal_candle::trace::{self, Plant, Settings, Table};

use crate::console::Console;

/// Makes an op slow while a trace is recorded, to see whether the trace shows it: `NAME=FACTOR`.
const PLANT: &str = "METAL_CANDLE_PLANT_SLOW";
/// Tells a profiler of NVIDIA's of all spans, with or without a trace.
const RANGES: &str = "METAL_CANDLE_NVTX";

/// Where the trace goes; whoever takes it writes it.
static TARGET: Mutex<Option<PathBuf>> = Mutex::new(None);

/// Starts to record, if that was asked for. A file that could not be written is an error now and not at the end.
pub(crate) fn begin(path: Option<&Path>, console: &Console) -> Result<()> {
    if std::env::var_os(RANGES).is_some_and(|value| !value.is_empty())
        && let Err(error) = trace::mark()
    {
        console.note(format_args!("{RANGES}: {error}"));
    }
    let plant = match std::env::var(PLANT) {
        Ok(text) if !text.is_empty() => Some(plant(&text)?),
        _ => None,
    };
    let Some(path) = path else {
        if plant.is_some() {
            bail!("{PLANT} acts on a trace only; add --trace FILE, or unset it");
        }
        return Ok(());
    };
    check(path)?;
    trace::start(Settings { plant, ..Settings::default() })?;
    *TARGET.lock().unwrap_or_else(PoisonError::into_inner) = Some(path.to_owned());
    Ok(())
}

/// Writes what was recorded until now, and says what cost most. Only the first call does anything.
pub(crate) fn end(console: &Console) -> Result<()> {
    // Held until the file is written: a Ctrl-C that comes meanwhile waits for it.
    let mut target = TARGET.lock().unwrap_or_else(PoisonError::into_inner);
    let Some(path) = target.take() else { return Ok(()) };
    let Some(recording) = trace::finish() else { return Ok(()) };
    trace::save_chrome(&recording, &path)?;
    let seconds = recording.duration_ns as f64 / 1e9;
    let spans: usize = recording.threads.iter().map(|thread| thread.spans.len()).sum();
    console.note(format_args!(
        "{}\ntrace: {} ({spans} spans in {seconds:.2} s, {} launches; open it in ui.perfetto.dev)",
        Table::of(&recording),
        path.display(),
        recording.launches
    ));
    Ok(())
}

fn check(path: &Path) -> Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let help = "name a file in a folder that exists";
    let found = fs::metadata(folder).with_context(|| {
        format!("--trace {}: cannot look into {}; {help}", path.display(), folder.display())
    })?;
    if !found.is_dir() || path.is_dir() {
        let wrong = if path.is_dir() { path } else { folder };
        let kind = if path.is_dir() { "is a folder" } else { "is no folder" };
        bail!("--trace {}: {} {kind}; {help}", path.display(), wrong.display());
    }
    Ok(())
}

fn plant(text: &str) -> Result<Plant> {
    let parsed = text.split_once('=').and_then(|(name, factor)| Some((name, factor.parse::<f64>().ok()?)));
    match parsed {
        Some((name, factor)) if !name.is_empty() && factor >= 1.0 && factor.is_finite() => {
            Ok(Plant { name: name.to_owned(), factor })
        }
        _ => bail!(
            "{PLANT}={text}: give the name of a span and how many times as long it is to take, such as rms_norm=2.0"
        ),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_plant_has_a_name_and_a_factor() {
        assert_eq!(plant("softmax=2.5").unwrap(), Plant { name: "softmax".to_owned(), factor: 2.5 });
        for wrong in ["softmax", "=2", "softmax=0.5", "softmax=fast", "softmax=inf"] {
            assert!(plant(wrong).unwrap_err().to_string().contains("rms_norm=2.0"), "{wrong}");
        }
    }
}
