//! Checkpoints: `OUTPUT/checkpoints/step-000123/` with the parameters, the optimizer's moments and `state.json`.
//!
//! A checkpoint is written under another name, brought to the disk and then renamed, so one that has its name is whole.
//! Should it be damaged later, the one before it is taken.

use std::{
    fs,
    path::{Path, PathBuf},
};

use candle_core::Device;

use super::state::RunState;
use crate::{
    Result, durable,
    model::weights,
    train::{ParameterState, TrainError, Trainer},
};

const FOLDER: &str = "checkpoints";
const STATE: &str = "state.json";
const PARAMETERS: &str = "training.safetensors";
const PREFIX: &str = "step-";

/// The checkpoints of one run.
#[derive(Debug)]
pub(super) struct Checkpoints {
    folder: PathBuf,
}

/// One that can be used.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) path: PathBuf,
    pub(super) state: RunState,
    /// Later ones that are damaged, and why.
    pub(super) passed_over: Vec<String>,
}

impl Checkpoints {
    pub(super) fn of(output: &Path) -> Self {
        Self { folder: output.join(FOLDER) }
    }

    /// Where the one of a step is.
    pub(super) fn path(&self, step: u64) -> PathBuf {
        self.folder.join(format!("{PREFIX}{step:06}"))
    }

    /// Writes one, with what `write_result` puts into it for use, and then removes all but the `keep_last` newest and the best.
    pub(super) fn save(
        &self,
        trainer: &Trainer,
        state: &RunState,
        write_result: &dyn Fn(&Path) -> Result<()>,
    ) -> Result<PathBuf> {
        let path = self.path(state.step);
        let failed = |error| TrainError::io("write", &path, error);
        let partial = durable::partial_path(&path).map_err(failed)?;
        remove(&partial)?;
        fs::create_dir_all(&partial).map_err(failed)?;
        let written = self.write(&partial, trainer, state, write_result);
        if written.is_err() {
            fs::remove_dir_all(&partial).ok();
        }
        written?;
        // A damaged one of this step may stand there.
        remove(&path)?;
        fs::rename(&partial, &path).and_then(|()| durable::sync_folder_of(&path)).map_err(failed)?;
        self.prune(state)?;
        Ok(path)
    }

    /// The newest that is whole.
    pub(super) fn newest(&self, output: &Path) -> Result<Found, TrainError> {
        let mut passed_over = Vec::new();
        for step in self.steps()?.into_iter().rev() {
            let path = self.path(step);
            match read_state(&path) {
                Ok(state) => return Ok(Found { path, state, passed_over }),
                Err(reason) => passed_over.push(format!("{}: {reason}", path.display())),
            }
        }
        Err(TrainError::NoCheckpoint { folder: output.to_owned(), passed_over })
    }

    /// The parameters and moments of a checkpoint.
    pub(super) fn parameters(path: &Path) -> Result<Vec<ParameterState>> {
        let file = path.join(PARAMETERS);
        let tensors = candle_core::safetensors::load(&file, &Device::Cpu)?;
        Ok(tensors.into_iter().map(|(name, state)| ParameterState { name, state }).collect())
    }

    /// The steps that have one, in order.
    pub(super) fn steps(&self) -> Result<Vec<u64>, TrainError> {
        let mut steps: Vec<u64> = self.names()?.iter().filter_map(|name| step_of(name)).collect();
        steps.sort_unstable();
        Ok(steps)
    }

    /// Removes what a run that was killed had not finished.
    pub(super) fn clean(&self) -> Result<(), TrainError> {
        for name in self.names()? {
            if name.starts_with('.') && name.ends_with(".partial") {
                remove(&self.folder.join(name))?;
            }
        }
        Ok(())
    }

    fn names(&self) -> Result<Vec<String>, TrainError> {
        let entries = match fs::read_dir(&self.folder) {
            Ok(entries) => entries,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(TrainError::io("read", &self.folder, error)),
        };
        let name =
            |entry: std::io::Result<fs::DirEntry>| Ok(entry?.file_name().to_string_lossy().into_owned());
        entries
            .map(name)
            .collect::<std::io::Result<_>>()
            .map_err(|error| TrainError::io("read", &self.folder, error))
    }

    fn write(
        &self,
        folder: &Path,
        trainer: &Trainer,
        state: &RunState,
        write_result: &dyn Fn(&Path) -> Result<()>,
    ) -> Result<()> {
        write_result(folder)?;
        let path = folder.join(PARAMETERS);
        let tensors: Vec<_> =
            trainer.parameters().state()?.into_iter().map(|own| (own.name, own.state)).collect();
        durable::write_file(&path, |file| weights::write_tensors(file, &tensors, &Default::default()))
            .map_err(|error| TrainError::io("write", &path, error))?;
        let mut state = state.clone();
        let sized = |path: &Path| -> std::io::Result<_> {
            let mut sizes = std::collections::BTreeMap::new();
            for entry in fs::read_dir(path)? {
                let entry = entry?;
                sizes.insert(entry.file_name().to_string_lossy().into_owned(), entry.metadata()?.len());
            }
            Ok(sizes)
        };
        state.files = sized(folder).map_err(|error| TrainError::io("read", folder, error))?;
        let path = folder.join(STATE);
        // The last file: with it, the folder's list of names is on the disk as well.
        durable::write_file(&path, |file| Ok(serde_json::to_writer_pretty(file, &state)?))
            .map_err(|error| TrainError::io("write", &path, error))?;
        Ok(())
    }

    fn prune(&self, state: &RunState) -> Result<(), TrainError> {
        let Some(keep) = state.config.keep_last else { return Ok(()) };
        let best = state.best.map(|best| best.step);
        let steps: Vec<u64> = self.steps()?.into_iter().filter(|&step| step <= state.step).collect();
        let old = &steps[..steps.len().saturating_sub(keep)];
        old.iter().filter(|&&step| Some(step) != best).try_for_each(|&step| remove(&self.path(step)))
    }
}

/// The state of a checkpoint whose files have their sizes.
fn read_state(path: &Path) -> Result<RunState, String> {
    let bytes = fs::read(path.join(STATE)).map_err(|error| format!("{STATE}: {error}"))?;
    let state: RunState = serde_json::from_slice(&bytes).map_err(|error| format!("{STATE}: {error}"))?;
    for (name, size) in &state.files {
        match fs::metadata(path.join(name)) {
            Err(error) => return Err(format!("{name}: {error}")),
            Ok(found) if found.len() != *size => {
                return Err(format!("{name}: {} bytes, expected {size}", found.len()));
            }
            Ok(_) => {}
        }
    }
    if state.files.contains_key(PARAMETERS) { Ok(state) } else { Err(format!("{PARAMETERS}: not there")) }
}

/// Removes a folder, if it is there; meanwhile it has a name that nobody takes for a checkpoint.
fn remove(path: &Path) -> Result<(), TrainError> {
    let failed = |error| TrainError::io("remove", path, error);
    if !path.exists() {
        return Ok(());
    }
    // Not the name under which the same checkpoint is being written.
    let away = durable::partial_path(&path.with_extension("removed")).map_err(failed)?;
    if away.exists() {
        fs::remove_dir_all(&away).map_err(failed)?;
    }
    fs::rename(path, &away).and_then(|()| fs::remove_dir_all(&away)).map_err(failed)
}

fn step_of(name: &str) -> Option<u64> {
    name.strip_prefix(PREFIX)?.parse().ok()
}
