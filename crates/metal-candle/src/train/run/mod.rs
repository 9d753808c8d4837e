//! A run: from a model, data and settings to an adapter, or to a trained model.
//!
//! Nothing is printed: observers are told what happens. A run that was stopped, or killed, goes on from its last checkpoint;
//! on the CPU its result is then, bit for bit, that of a run that was never stopped.

mod checkpoint;
mod measure;
mod output;
mod plan;
mod setup;
mod state;

use std::{
    ops::ControlFlow,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Instant, SystemTime},
};

use candle_core::{DType, Device};

pub use plan::Plan;

use self::{
    checkpoint::Checkpoints,
    setup::{DataFiles, batches, trainer_for},
    state::{Best, RunState},
};
use super::{
    Rows, TrainConfig, TrainError, Trainer, Update,
    data::{Batch, Prefetch},
    events::{
        Checkpoint, Evaluation, Finished, Notice, Observer, Speaker, Split, Started, Step, Stopped,
        TrainEvent,
    },
};
use crate::{LanguageModel, Result, data::Encoder, device, trace};

/// A training run.
#[derive(Debug)]
pub struct Run {
    language_model: Arc<LanguageModel>,
    config: TrainConfig,
    trainer: Trainer,
    encoder: Arc<Encoder>,
    files: DataFiles,
    batches: Prefetch,
    checkpoints: Checkpoints,
    state: RunState,
    /// Of the weights as they were loaded.
    dtype: DType,
    /// The step of the last checkpoint.
    saved: Option<u64>,
    /// What the observers are to know first.
    notices: Vec<String>,
}

/// The settings that a run was last saved with.
pub fn saved_config(output: &Path) -> Result<TrainConfig> {
    Ok(Checkpoints::of(output).newest(output)?.state.config)
}

impl Run {
    /// A new run. An output folder with checkpoints of another run is an error. `progress` is told bytes of data read and
    /// bytes in all.
    pub fn new(
        language_model: Arc<LanguageModel>,
        config: TrainConfig,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<Self> {
        config.check()?;
        let checkpoints = Checkpoints::of(&config.output);
        if let Some(&step) = checkpoints.steps()?.last() {
            return Err(TrainError::Occupied { folder: config.output, step }.into());
        }
        let files = DataFiles::open(&config, progress)?;
        let (encoder, state) = setup::fresh(&language_model, &config, &files)?;
        let trainer = trainer_for(&language_model, &config, &state)?;
        output::check(&config)?;
        Self::assemble(language_model, config, trainer, encoder, files, checkpoints, state)
    }

    /// Goes on with the run in the config's output folder. Settings, data or a model that are not what they were are an
    /// error that names them; only the length may grow.
    pub fn resume(
        language_model: Arc<LanguageModel>,
        config: TrainConfig,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<Self> {
        config.check()?;
        let checkpoints = Checkpoints::of(&config.output);
        let found = checkpoints.newest(&config.output)?;
        let files = DataFiles::open(&config, progress)?;
        let (encoder, now) = setup::resumed(&language_model, &config, &files, &found.state)?;
        found.state.check_same(&now, &found.path)?;
        let state = RunState { total_steps: now.total_steps, config: config.clone(), ..found.state };
        let mut trainer = trainer_for(&language_model, &config, &state)?;
        trainer.restore(&Checkpoints::parameters(&found.path)?)?;
        let mut run = Self::assemble(language_model, config, trainer, encoder, files, checkpoints, state)?;
        run.saved = Some(run.state.step);
        run.notices
            .extend(found.passed_over.iter().map(|which| format!("damaged, and passed over: {which}")));
        Ok(run)
    }

    fn assemble(
        language_model: Arc<LanguageModel>,
        config: TrainConfig,
        trainer: Trainer,
        encoder: Arc<Encoder>,
        files: DataFiles,
        checkpoints: Checkpoints,
        state: RunState,
    ) -> Result<Self> {
        checkpoints.clean()?;
        let batches = batches(&config, &files, &encoder, &state)?;
        let notices = files.notices();
        let dtype = language_model.model().dtype();
        // Where all weights are trained, those that were loaded are not needed any more.
        let language_model = Arc::new(language_model.with_model(Arc::clone(trainer.model())));
        Ok(Self {
            dtype,
            saved: None,
            language_model,
            config,
            trainer,
            encoder,
            files,
            batches,
            checkpoints,
            state,
            notices,
        })
    }

    /// The settings.
    pub fn config(&self) -> &TrainConfig {
        &self.config
    }

    /// Steps made, and steps in all.
    pub fn steps(&self) -> (u64, u64) {
        (self.state.step, self.state.total_steps)
    }

    /// What is being trained.
    pub fn trainer(&self) -> &Trainer {
        &self.trainer
    }

    /// Trains to the end, or until an observer asks to stop: then the run is saved, and can be resumed.
    pub fn run(&mut self, observer: &mut dyn Observer) -> Result<Finished> {
        let began = Instant::now();
        let mut told = Told { observer, stop: false };
        told.tell(TrainEvent::Started(self.started()))?;
        for text in std::mem::take(&mut self.notices) {
            told.tell(TrainEvent::Notice(Notice { step: self.state.step, text }))?;
        }
        let stopped = match self.train(&mut told) {
            Ok(stopped) => stopped,
            Err(error) => {
                if let crate::Error::Train(TrainError::NotFinite { .. }) = &error {
                    told.tell(TrainEvent::Finished(self.finished(began, Stopped::NotFinite)))?;
                }
                return Err(error);
            }
        };
        if stopped != Stopped::Interrupted {
            self.end(&mut told)?;
        }
        let finished = self.finished(began, stopped);
        told.tell(TrainEvent::Finished(finished.clone()))?;
        Ok(finished)
    }

    fn train(&mut self, told: &mut Told<'_>) -> Result<Stopped> {
        if self.state.step == 0 && self.state.measured.is_none() {
            self.show_samples(Speaker::Base, told)?;
            self.measure(told)?;
        }
        while self.state.step < self.state.total_steps {
            if told.stop {
                self.save_once(told)?;
                return Ok(Stopped::Interrupted);
            }
            let step = match self.step() {
                Ok(step) => step,
                Err(Halt::Failed(error)) => return Err(error),
                Err(Halt::NotFinite(what, lines)) => return Err(self.not_finite(what, lines, told)),
            };
            told.tell(TrainEvent::Step(step))?;
            let last = self.state.step == self.state.total_steps;
            let best = if last || is_due(self.config.evaluation.every, self.state.step) {
                self.measure(told)?
            } else {
                false
            };
            if !last && is_due(self.config.samples.every, self.state.step) {
                self.show_samples(Speaker::Trained, told)?;
            }
            if best || is_due(self.config.save_every, self.state.step) {
                self.save(told)?;
            }
            if self.config.evaluation.patience.is_some_and(|patience| self.state.since_best >= patience) {
                return Ok(Stopped::EarlyStopping);
            }
        }
        Ok(Stopped::Complete)
    }

    /// Accumulates the batches of one step and updates.
    fn step(&mut self) -> Result<Step, Halt> {
        let began = Instant::now();
        let _step =
            trace::span("train_step", self.language_model.model().device()).at(self.state.step as usize + 1);
        let (mut sum, mut targets, mut tokens) = (0.0, 0, 0);
        let mut lines = Vec::new();
        let mut last = None;
        for index in 0..self.config.accumulation as u64 {
            let batch = self.next_batch()?;
            lines.extend(&batch.lines);
            let draw = self.state.step * self.config.accumulation as u64 + index;
            let found = self.trainer.accumulate(&rows(&batch), draw).map_err(crate::Error::from)?;
            if !found.sum.is_finite() {
                return Err(Halt::NotFinite("loss", lines));
            }
            sum += found.sum;
            targets += found.targets;
            tokens += batch.useful as u64;
            last = Some(batch);
        }
        let rate = self.config.schedule.rate(self.state.step, self.state.total_steps);
        let number = u32::try_from(self.state.step + 1).unwrap_or(u32::MAX);
        let update = Update { number, learning_rate: rate, targets };
        let updated = self.trainer.update(&update).map_err(crate::Error::from)?;
        if !updated.gradient_norm.is_finite() {
            return Err(Halt::NotFinite("gradient", lines));
        }
        self.state.step += 1;
        let mut epoch = 0.0;
        if let Some(batch) = last {
            self.state.cursor = batch.next;
            let done = batch.next.window as f64 / self.files.train.len() as f64;
            epoch = batch.next.epoch as f64 + done;
        }
        let seconds = began.elapsed().as_secs_f64();
        let longest = self.config.optimizer.max_gradient_norm;
        Ok(Step {
            step: self.state.step,
            epoch,
            loss: sum / targets.max(1) as f64,
            learning_rate: f64::from(rate),
            gradient_norm: f64::from(updated.gradient_norm),
            clipped: longest.is_some_and(|longest| updated.gradient_norm > longest),
            tokens,
            targets: targets as u64,
            seconds,
            tokens_per_second: tokens as f64 / seconds,
            memory_bytes: peak_memory(self.language_model.model().device()),
        })
    }

    fn next_batch(&mut self) -> Result<Batch> {
        let _wait = trace::host_span("wait_for_batch");
        self.batches.next().unwrap_or_else(|| {
            // A loader without a number of epochs has no end but an error, which came before.
            let path = self.files.train.path().display().to_string();
            Err(crate::data::DataError::Empty { path }.into())
        })
    }

    /// Measures on the validation data, if there are any; says whether it was the best so far.
    fn measure(&mut self, told: &mut Told<'_>) -> Result<bool> {
        let step = self.state.step;
        if self.state.measured == Some(step) {
            return Ok(false);
        }
        self.state.measured = Some(step);
        let Some(file) = self.files.valid.clone() else { return Ok(false) };
        let _evaluation = trace::span("evaluation", self.language_model.model().device());
        let loss = self.loss_on(&file, self.config.evaluation.batches)?;
        let best = self.state.best.is_none_or(|best| loss < best.loss);
        if best {
            self.state.best = Some(Best { step, loss });
            self.state.since_best = 0;
        } else {
            self.state.since_best += 1;
        }
        told.tell(TrainEvent::Evaluation(evaluation(step, Split::Validation, loss, best)))?;
        Ok(best && step > 0)
    }

    /// What comes after the last step.
    fn end(&mut self, told: &mut Told<'_>) -> Result<()> {
        self.measure(told)?;
        if self.config.evaluation.test
            && let Some(file) = self.files.test.clone()
        {
            let loss = self.loss_on(&file, self.config.evaluation.test_batches)?;
            told.tell(TrainEvent::Evaluation(evaluation(self.state.step, Split::Test, loss, false)))?;
        }
        self.show_samples(Speaker::Trained, told)?;
        self.save_once(told)?;
        self.write_result(&self.config.output)?;
        let best = self.state.best.filter(|best| best.step > 0 && best.step < self.state.step);
        if let Some(best) = best {
            let text = format!(
                "the validation loss was lowest ({:.4}) after step {}: {}",
                best.loss,
                best.step,
                self.checkpoints.path(best.step).display()
            );
            told.tell(TrainEvent::Notice(Notice { step: self.state.step, text }))?;
        }
        Ok(())
    }

    /// Saves, unless this step has been saved.
    fn save_once(&mut self, told: &mut Told<'_>) -> Result<()> {
        if self.saved != Some(self.state.step) {
            self.save(told)?;
        }
        Ok(())
    }

    fn save(&mut self, told: &mut Told<'_>) -> Result<PathBuf> {
        let _checkpoint = trace::host_span("checkpoint").at(self.state.step as usize);
        let path = self.checkpoints.save(&self.trainer, &self.state, &|folder| self.write_result(folder))?;
        self.saved = Some(self.state.step);
        let event = Checkpoint { step: self.state.step, path: path.display().to_string() };
        told.tell(TrainEvent::Checkpoint(event))?;
        Ok(path)
    }

    fn write_result(&self, folder: &Path) -> Result<()> {
        output::write(&self.language_model, self.dtype, &self.config, &self.trainer, folder)
    }

    /// Saves the last good state and says what was wrong after it.
    fn not_finite(&mut self, what: &'static str, lines: Vec<u64>, told: &mut Told<'_>) -> crate::Error {
        let saved = match self.are_parameters_finite() {
            Ok(true) => self.save(told).map(Some),
            Ok(false) => Ok(None),
            Err(error) => Err(error),
        };
        match saved {
            Ok(saved) => TrainError::NotFinite { step: self.state.step + 1, what, lines, saved }.into(),
            Err(error) => error,
        }
    }

    fn are_parameters_finite(&self) -> Result<bool> {
        for parameter in self.trainer.parameters().state()? {
            // Zero times anything that is not finite is not a number.
            if (parameter.state * 0.0)?.sum_all()?.to_scalar::<f32>()? != 0.0 {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn started(&self) -> Started {
        let model = self.language_model.model();
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        Started {
            step: self.state.step,
            total_steps: self.state.total_steps,
            unix_seconds: now.map_or(0.0, |now| now.as_secs_f64()),
            model: self.config.model.clone(),
            method: plan::method_name(&self.config),
            device: device::kind(model.device()).to_owned(),
            dtype: self.dtype.as_str().to_owned(),
            parameters: model.spec().parameters(),
            trainable: self.trainer.parameters().count(),
            data: self.files.description(),
            config: serde_json::to_value(&self.config).unwrap_or_default(),
        }
    }

    fn finished(&self, began: Instant, stopped: Stopped) -> Finished {
        let best = self.state.best.map(|best| evaluation(best.step, Split::Validation, best.loss, true));
        Finished { steps: self.state.step, best, seconds: began.elapsed().as_secs_f64(), stopped }
    }
}

/// An observer, and whether it has asked to stop.
struct Told<'a> {
    observer: &'a mut dyn Observer,
    stop: bool,
}

impl Told<'_> {
    fn tell(&mut self, event: TrainEvent) -> Result<()> {
        if let ControlFlow::Break(()) = self.observer.event(&event)? {
            self.stop = true;
        }
        Ok(())
    }
}

/// Why a step was not made.
enum Halt {
    Failed(crate::Error),
    /// What was not finite, and the lines that it came from.
    NotFinite(&'static str, Vec<u64>),
}

impl From<crate::Error> for Halt {
    fn from(error: crate::Error) -> Self {
        Self::Failed(error)
    }
}

fn rows(batch: &Batch) -> Rows<'_> {
    Rows { tokens: &batch.tokens, targets: &batch.targets, starts: &batch.starts }
}

/// The most that was held at a time: by the tensors on an accelerator, else by the process.
fn peak_memory(place: &Device) -> u64 {
    match device::memory(place) {
        Ok(Some(memory)) => memory.peak,
        _ => device::peak_resident_bytes().unwrap_or(0),
    }
}

fn is_due(every: Option<u64>, step: u64) -> bool {
    every.is_some_and(|every| step.is_multiple_of(every))
}

fn evaluation(step: u64, split: Split, loss: f64, best: bool) -> Evaluation {
    Evaluation { step, split, loss, perplexity: loss.exp(), best }
}
