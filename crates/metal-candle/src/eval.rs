//! Loss and perplexity of a model on a file.

use std::io::BufRead;

use crate::{
    LanguageModel, Result,
    cache::KvCache,
    data::{DataError, Encoder, EncoderOptions, Example, records},
    lora::ActiveAdapter,
    model::{LogitsFor, SequenceInput},
};

/// Rows of one forward: short examples share it, long ones take several.
const MAX_ROWS: usize = 512;

/// How well a model predicts a file.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Report {
    /// Mean of −log p over the counted tokens.
    pub loss: f64,
    /// e to the loss.
    pub perplexity: f64,
    /// Tokens counted.
    pub tokens: usize,
    /// Lines read.
    pub examples: usize,
    /// Lines that were cut to fit the context.
    pub truncated: usize,
}

/// Measures a model, changed by an adapter if one is given, on JSONL; see [`crate::data`] for what counts. `progress` is told the lines done.
///
/// Lines longer than `max_tokens`, or than the model's context, are cut and counted.
pub fn evaluate(
    language_model: &LanguageModel,
    path: &str,
    reader: impl BufRead,
    adapter: Option<&ActiveAdapter>,
    max_tokens: Option<usize>,
    progress: &mut dyn FnMut(usize),
) -> Result<Report> {
    let context = language_model.model().spec().max_positions;
    let limit = max_tokens.map_or(context, |most| most.min(context));
    let mut sum = Sum { language_model, adapter, loss: 0.0, tokens: 0 };
    let encoder =
        Encoder::of(language_model, EncoderOptions { append_end: false, ..EncoderOptions::default() });
    let (mut examples, mut truncated) = (0, 0);
    let mut batch: Vec<Example> = Vec::new();
    for record in records(path, reader) {
        let (line, record) = record?;
        let mut example = encoder.encode(&record)?;
        truncated += usize::from(example.truncate(limit));
        if example.tokens.is_empty() {
            return Err(
                DataError::Line { path: path.to_owned(), line, reason: "has no tokens".to_owned() }.into()
            );
        }
        examples += 1;
        batch.push(example);
        if batch.iter().map(|example| example.tokens.len()).sum::<usize>() >= MAX_ROWS {
            sum.add(&batch)?;
            batch.clear();
            progress(examples);
        }
    }
    sum.add(&batch)?;
    progress(examples);
    if sum.tokens == 0 {
        return Err(DataError::Empty { path: path.to_owned() }.into());
    }
    let loss = sum.loss / sum.tokens as f64;
    Ok(Report { loss, perplexity: loss.exp(), tokens: sum.tokens, examples, truncated })
}

struct Sum<'model> {
    language_model: &'model LanguageModel,
    adapter: Option<&'model ActiveAdapter>,
    loss: f64,
    tokens: usize,
}

impl Sum<'_> {
    /// Runs the examples side by side, each in pieces, until all are through.
    fn add(&mut self, examples: &[Example]) -> Result<()> {
        let model = self.language_model.model();
        let new_cache = |example: &Example| {
            let mut cache = model.new_cache();
            cache.expect(example.tokens.len());
            cache
        };
        let mut caches: Vec<KvCache> = examples.iter().map(new_cache).collect();
        loop {
            let mut left = MAX_ROWS;
            let mut batch = Vec::new();
            let mut targets = Vec::new();
            for (example, cache) in examples.iter().zip(&mut caches) {
                let start = cache.len();
                // The last token predicts nothing that is there.
                let end = (example.tokens.len() - 1).min(start + left);
                if start < end {
                    left -= end - start;
                    let next = start + 1..end + 1;
                    targets.extend(next.map(|at| example.counted[at].then_some(example.tokens[at])));
                    let tokens = &example.tokens[start..end];
                    let adapter = self.adapter;
                    batch.push(SequenceInput { tokens, cache, logits: LogitsFor::All, adapter });
                }
            }
            if batch.is_empty() {
                return Ok(());
            }
            let hidden = model.forward_hidden(&mut batch)?;
            self.add_rows(&hidden, &targets)?;
        }
    }

    /// Adds −log p of each row's target, if it has one.
    fn add_rows(&mut self, hidden: &candle_core::Tensor, targets: &[Option<u32>]) -> Result<()> {
        let loss = self.language_model.model().loss(hidden, targets)?;
        self.loss += loss.sum()?;
        self.tokens += loss.count;
        Ok(())
    }
}
