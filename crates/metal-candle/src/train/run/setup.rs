//! From settings to what a run works with.

use std::{collections::BTreeMap, num::NonZero, path::Path, sync::Arc};

use candle_core::DType;
use serde_json::{Value, json};

use super::state::{ModelStamp, RunState};
use crate::{
    LanguageModel, Result,
    data::Encoder,
    lora::{Adapter, StoredAdapter},
    model::{Model, weights::Weights},
    text::LocalTime,
    train::{
        RunLength, TrainConfig, TrainError, Trainer, TrainerOptions, Training, Workload,
        data::{Cursor, DataFile, Loader, Prefetch, Source, survey},
    },
};

/// Threads that tokenise ahead of the training.
const DATA_THREADS: usize = 2;

/// The data of a run.
#[derive(Debug)]
pub(super) struct DataFiles {
    pub(super) train: Arc<DataFile>,
    pub(super) valid: Option<Arc<DataFile>>,
    pub(super) test: Option<Arc<DataFile>>,
}

impl DataFiles {
    pub(super) fn open(config: &TrainConfig, progress: &mut dyn FnMut(u64, u64)) -> Result<Self> {
        let source = Source::find(&config.data.path)?;
        let mut open = |path: &Path| {
            Ok::<_, crate::Error>(Arc::new(DataFile::open(path, config.bad_line_policy(), progress)?))
        };
        let train = open(&source.train)?;
        let valid = source.valid.as_deref().map(&mut open).transpose()?;
        let test = source.test.as_deref().filter(|_| config.evaluation.test).map(&mut open).transpose()?;
        let needs = |name, value: &str, expected| {
            Err(TrainError::Setting { name, value: value.to_owned(), expected }.into())
        };
        if config.evaluation.test && test.is_none() {
            return needs("evaluation.test", "on", "the data folder must hold a test.jsonl for it");
        }
        if config.evaluation.patience.is_some() && valid.is_none() {
            return needs("evaluation.patience", "given", "the data folder must hold a valid.jsonl for it");
        }
        Ok(Self { train, valid, test })
    }

    fn each(&self) -> impl Iterator<Item = (&'static str, &Arc<DataFile>)> {
        let others = [("valid", &self.valid), ("test", &self.test)];
        let others = others.into_iter().filter_map(|(name, file)| Some((name, file.as_ref()?)));
        [("train", &self.train)].into_iter().chain(others)
    }

    fn fingerprints(&self) -> BTreeMap<String, u64> {
        self.each().map(|(name, file)| (name.to_owned(), file.fingerprint())).collect()
    }

    /// For people.
    pub(super) fn description(&self) -> Value {
        let of =
            |file: &DataFile| json!({ "path": file.path().display().to_string(), "examples": file.len() });
        self.each().map(|(name, file)| (name.to_owned(), of(file))).collect()
    }

    /// What was passed over.
    pub(super) fn notices(&self) -> Vec<String> {
        let bad = self.each().filter(|(_, file)| file.bad_lines().count > 0);
        bad.map(|(_, file)| format!("{}: {}", file.path().display(), file.bad_lines())).collect()
    }
}

/// The state of a run that has not begun.
pub(super) fn fresh(
    language_model: &LanguageModel,
    config: &TrainConfig,
    files: &DataFiles,
) -> Result<(Arc<Encoder>, RunState)> {
    start(language_model, config, files, LocalTime::now().to_string())
}

/// The state that a new run would have where one was saved: to be compared with it.
pub(super) fn resumed(
    language_model: &LanguageModel,
    config: &TrainConfig,
    files: &DataFiles,
    saved: &RunState,
) -> Result<(Arc<Encoder>, RunState)> {
    start(language_model, config, files, saved.time.clone())
}

fn start(
    language_model: &LanguageModel,
    config: &TrainConfig,
    files: &DataFiles,
    time: String,
) -> Result<(Arc<Encoder>, RunState)> {
    let now: LocalTime = time.parse().map_err(|_| TrainError::Setting {
        name: "time",
        value: time.clone(),
        expected: "the checkpoint's state.json was changed; restore it",
    })?;
    let encoder = Arc::new(Encoder::of(language_model, config.encoder_options()).at_time(now));
    let loader = loader(config, files, &encoder)?;
    let cursor = loader.cursor();
    let total_steps = match config.length {
        RunLength::Steps(steps) => steps,
        RunLength::Epochs(epochs) => {
            let batches = survey(loader, &mut |_, _| ())?.batches as f64 * epochs;
            (batches / config.accumulation as f64).ceil().max(1.0) as u64
        }
    };
    let state = RunState {
        step: 0,
        total_steps,
        cursor,
        best: None,
        since_best: 0,
        measured: None,
        time,
        data: files.fingerprints(),
        model: ModelStamp::of(language_model.model()),
        config: config.clone(),
        files: BTreeMap::new(),
    };
    Ok((encoder, state))
}

/// The training data from the first batch on.
pub(super) fn loader(config: &TrainConfig, files: &DataFiles, encoder: &Arc<Encoder>) -> Result<Loader> {
    Loader::new(Arc::clone(&files.train), Arc::clone(encoder), config.loader_options())
}

/// The batches that are still to come.
pub(super) fn batches(
    config: &TrainConfig,
    files: &DataFiles,
    encoder: &Arc<Encoder>,
    state: &RunState,
) -> Result<Prefetch> {
    let threads = NonZero::new(DATA_THREADS).unwrap_or(NonZero::<usize>::MIN);
    let loader = loader(config, files, encoder)?.threads(threads);
    let begins = state.cursor == Cursor { fingerprint: state.cursor.fingerprint, ..Cursor::default() };
    let loader = if begins { loader } else { loader.at(state.cursor)? };
    Prefetch::new(loader, Prefetch::DEPTH)
}

/// What trains, with its first values.
pub(super) fn trainer_for(
    language_model: &LanguageModel,
    config: &TrainConfig,
    state: &RunState,
) -> Result<Trainer> {
    let model = language_model.model();
    let (batch, length) = (config.data.batch_size as u64, config.data.max_seq_length as u64);
    let rows = batch * length.min(model.spec().max_positions as u64);
    let options = TrainerOptions {
        optimizer: config.optimizer,
        seed: config.seed,
        recompute: config.recompute.resolve(&workload(language_model, config, rows, rows), model.device()),
        label_smoothing: config.label_smoothing,
        z_loss: config.z_loss,
        ..TrainerOptions::default()
    };
    debug_assert_eq!(state.config.method, config.method);
    Ok(match config.method {
        Training::Adapter => {
            let adapter = match &config.initial_adapter {
                None => Adapter::initial(&config.lora, model, config.seed)?,
                Some(path) => stored(path, config, model)?,
            };
            Trainer::lora(Arc::clone(model), &adapter, options)?
        }
        Training::Full => {
            let weights: Weights = model.weights()?.into_iter().collect();
            Trainer::full(model.spec().clone(), weights, model.device(), options)?
        }
    })
}

/// An adapter that training goes on from.
fn stored(path: &Path, config: &TrainConfig, model: &Model) -> Result<Adapter> {
    let folder = match path.parent() {
        Some(folder) if path.is_file() => folder,
        _ => path,
    };
    let mut adapter = StoredAdapter::load(folder, Some(model.spec()))?.adapter;
    adapter.config.dropout = config.lora.dropout;
    Ok(adapter.to(model.device(), DType::F32)?)
}

/// What a batch of so many rows and targets would take.
pub(super) fn workload<'a>(
    language_model: &'a LanguageModel,
    config: &'a TrainConfig,
    rows: u64,
    targets: u64,
) -> Workload<'a> {
    let adapter = (config.method == Training::Adapter).then_some(&config.lora);
    Workload::new(language_model.model(), adapter, rows, targets)
}
