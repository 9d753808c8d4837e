//! From `--model` and the computing flags to something that runs, with progress on stderr.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use indicatif::ProgressBar;
use metal_candle::{
    LanguageModel,
    device::{self, Device, DeviceChoice},
    hub::{self, DownloadProgress, FilesWanted, HubOptions, ModelSource},
    model::{LoadOptions, Model},
};

use crate::{
    args::{ComputeArgs, SourceArgs},
    console::{Console, human_bytes},
    tiny,
};

/// The model's folder; a model on the hub is downloaded first, the one inside the program unpacked.
pub(crate) fn folder(source: &SourceArgs, wanted: FilesWanted, console: &Console) -> Result<PathBuf> {
    if source.model == tiny::NAME {
        if Path::new(tiny::NAME).exists() {
            console.note("model: the tiny one inside the program; ./tiny is the folder of this name");
        }
        return tiny::folder();
    }
    let parsed = ModelSource::parse(&source.model)?;
    if let ModelSource::Folder(folder) = parsed {
        return Ok(folder);
    }
    let mut options = HubOptions::from_env()?;
    options.offline |= source.offline;
    options.what = wanted;
    let mut progress = Download { console, bar: None };
    let fetched = hub::fetch(&parsed, &options, &mut progress);
    progress.finish();
    fetched.with_context(|| format!("cannot get the model {}", source.model))
}

/// Loads the model with its tokenizer; says how long it took.
pub(crate) fn load(
    source: &SourceArgs,
    compute: &ComputeArgs,
    console: &Console,
) -> Result<(Arc<LanguageModel>, Duration)> {
    let device = open_device(compute, console)?;
    let folder = folder(source, FilesWanted::Everything, console)?;
    let options = load_options(compute, device);
    let (model, took) = with_progress(console, |report| LanguageModel::load(&folder, &options, report))
        .with_context(|| format!("cannot load the model {}", source.model))?;
    Ok((Arc::new(model), took))
}

/// Loads the decoder only: no tokenizer is needed.
pub(crate) fn load_decoder(
    source: &SourceArgs,
    compute: &ComputeArgs,
    device: Device,
    console: &Console,
) -> Result<(Model, Duration)> {
    let folder = folder(source, FilesWanted::Everything, console)?;
    let options = load_options(compute, device);
    with_progress(console, |report| Model::load(&folder, &options, report))
        .with_context(|| format!("cannot load the model {}", source.model))
}

/// Opens the device, says which one `auto` took, and sets the number of threads.
pub(crate) fn open_device(compute: &ComputeArgs, console: &Console) -> Result<Device> {
    if let Some(threads) = compute.threads {
        device::set_threads(usize::from(threads));
    }
    let opened = compute.device.open()?;
    if compute.device == DeviceChoice::Auto {
        let reasons = if opened.is_cpu() { passed_over() } else { String::new() };
        console.note(format_args!("device: {} (auto{reasons})", device::kind(&opened)));
    }
    Ok(opened)
}

/// What `auto` could not take and why.
fn passed_over() -> String {
    let accelerators = [DeviceChoice::Cuda(0), DeviceChoice::Metal(0)];
    let (built, missing): (Vec<_>, Vec<_>) =
        accelerators.into_iter().partition(|choice| choice.is_compiled_in());
    if missing.len() == accelerators.len() {
        return "; this build has no CUDA and no Metal".to_owned();
    }
    let failures = built.into_iter().filter_map(|choice| choice.open().err());
    failures.map(|error| format!("; {error}")).collect()
}

fn load_options(compute: &ComputeArgs, device: Device) -> LoadOptions {
    LoadOptions {
        device,
        dtype: compute.dtype.explicit(),
        ignore_config_keys: compute.ignore_config_key.clone(),
    }
}

/// Runs `load` with a progress bar and takes its time.
fn with_progress<T, E>(
    console: &Console,
    load: impl FnOnce(&mut dyn FnMut(u64, u64)) -> Result<T, E>,
) -> Result<(T, Duration), E> {
    let start = Instant::now();
    let bar = console.bytes_bar("loading", 0);
    let loaded = load(&mut |done, total| {
        bar.set_length(total);
        bar.set_position(done);
    });
    bar.finish_and_clear();
    Ok((loaded?, start.elapsed()))
}

/// Shows a download: one bar per file.
struct Download<'a> {
    console: &'a Console,
    bar: Option<(String, ProgressBar)>,
}

impl Download<'_> {
    fn finish(&mut self) {
        if let Some((_, bar)) = self.bar.take() {
            bar.finish_and_clear();
        }
    }
}

impl DownloadProgress for Download<'_> {
    fn plan(&mut self, files: &[(String, Option<u64>)]) {
        let total: u64 = files.iter().filter_map(|(_, bytes)| *bytes).sum();
        if !files.is_empty() {
            let count = files.len();
            self.console.note(format_args!("downloading {count} files, {}", human_bytes(total)));
        }
    }

    fn update(&mut self, file: &str, done: u64, total: u64) {
        if self.bar.as_ref().is_none_or(|(shown, _)| shown != file) {
            self.finish();
            self.bar = Some((file.to_owned(), self.console.bytes_bar(file, total)));
        }
        if let Some((_, bar)) = &self.bar {
            bar.set_position(done);
        }
    }
}
