//! Looking at what a run has learned: losses on other data, and texts.

use std::{collections::BTreeMap, sync::Arc};

use serde_json::json;

use super::{Run, Told, rows};
use crate::{
    Result,
    generate::{Engine, EngineOptions, Prompt, Request, sampler::SamplingParams},
    text::ChatInput,
    train::{
        data::{DataFile, Loader, LoaderOptions},
        events::{Sample, Speaker, TrainEvent},
    },
};

impl Run {
    /// The mean loss on the first batches of a file, or on all of it, with the parameters as they are. The order is that of
    /// the file, so measurements of one run are about the same data.
    pub(super) fn loss_on(&mut self, file: &Arc<DataFile>, batches: Option<u64>) -> Result<f64> {
        let options = LoaderOptions { shuffle: false, ..self.config.loader_options() };
        let loader = Loader::new(Arc::clone(file), Arc::clone(&self.encoder), options)?.epochs(1);
        let most = batches.map_or(usize::MAX, |batches| batches as usize);
        let (mut sum, mut targets) = (0.0, 0);
        for batch in loader.take(most) {
            let found = self.trainer.loss(&rows(&batch?))?;
            sum += found.sum;
            targets += found.targets;
        }
        Ok(sum / targets as f64)
    }

    /// Continues the prompts, all in one batch, always with the most likely token.
    pub(super) fn show_samples(&mut self, speaker: Speaker, told: &mut Told<'_>) -> Result<()> {
        let samples = &self.config.samples;
        if samples.prompts.is_empty() {
            return Ok(());
        }
        let model = Arc::clone(&self.language_model);
        let adapter = match speaker {
            Speaker::Base => None,
            Speaker::Trained => self.trainer.active_adapter()?,
        };
        let template = model.chat_template().filter(|_| !samples.raw).cloned();
        let options = EngineOptions { max_sequences: samples.prompts.len(), ..EngineOptions::default() };
        let mut engine = Engine::new(model, options);
        let mut texts: BTreeMap<_, (&String, String)> = BTreeMap::new();
        for prompt in &samples.prompts {
            let text = match &template {
                Some(template) => {
                    let messages = [json!({ "role": "user", "content": prompt })];
                    Prompt::Rendered(template.render(&ChatInput::new(&messages))?)
                }
                None => Prompt::Text(prompt.clone()),
            };
            let request = Request {
                prompt: text,
                sampling: SamplingParams { temperature: 0.0, ..SamplingParams::default() },
                max_tokens: Some(samples.max_tokens),
                adapter: adapter.clone(),
                ..Request::default()
            };
            texts.insert(engine.submit(&request)?, (prompt, String::new()));
        }
        while !engine.is_idle() {
            for event in engine.step()? {
                if let Some((_, text)) = texts.get_mut(&event.request) {
                    *text += &event.outcome?.text;
                }
            }
        }
        // Requests are numbered in the order of the prompts.
        for (prompt, text) in texts.into_values() {
            let sample = Sample { step: self.state.step, speaker, prompt: prompt.clone(), text };
            told.tell(TrainEvent::Sample(sample))?;
        }
        Ok(())
    }
}
