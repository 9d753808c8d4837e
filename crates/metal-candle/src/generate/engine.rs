//! The engine: many sequences, one forward per step.
//!
//! A step gives every decoding sequence one row and spends what is left of the row budget on prompts, in the
//! order they came. Generation by callback, iterator and stream, the chat and the server all drive this.

use std::{collections::VecDeque, sync::Arc};

use super::{
    FinishReason, GenerateError, Request, StreamToken,
    sampler::{Sampler, TokenHistory},
    stop::{StopMatcher, StopText},
};
use crate::{
    Result,
    cache::KvCache,
    language_model::LanguageModel,
    lora::ActiveAdapter,
    model::{LogitsFor, SequenceInput, rope::RopeSpec},
    text::Detokenizer,
    trace,
};

/// Limits of an [`Engine`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EngineOptions {
    /// Sequences that run at the same time; further ones wait.
    pub max_sequences: usize,
    /// Rows of one forward: longer prompts arrive in pieces.
    pub max_rows: usize,
    /// Finished sequences whose cache is kept, for later prompts that begin alike.
    pub kept_prefixes: usize,
}

impl Default for EngineOptions {
    fn default() -> Self {
        Self { max_sequences: 16, max_rows: 512, kept_prefixes: 0 }
    }
}

/// Names a request within its engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RequestId(u64);

/// Something happened to a request.
#[derive(Debug)]
pub struct Event {
    /// The request.
    pub request: RequestId,
    /// Its next token, or why it ended early.
    pub outcome: Result<StreamToken>,
}

/// Runs requests, batched.
#[derive(Debug)]
pub struct Engine {
    language_model: Arc<LanguageModel>,
    options: EngineOptions,
    waiting: VecDeque<Sequence>,
    running: Vec<Sequence>,
    prefixes: VecDeque<Prefix>,
    next_id: u64,
}

/// Tokens and the cache that holds them.
#[derive(Debug)]
struct Prefix {
    tokens: Vec<u32>,
    cache: KvCache,
    adapter: Option<Arc<ActiveAdapter>>,
}

#[derive(Debug)]
struct Sequence {
    id: RequestId,
    /// Prompt and generated tokens; the cache holds the first ones.
    tokens: Vec<u32>,
    /// Tokens at which the context or the request's limit is reached.
    limit: usize,
    cache: KvCache,
    sampler: Sampler,
    history: TokenHistory,
    detokenizer: Detokenizer,
    stop: StopMatcher,
    ignore_eos: bool,
    adapter: Option<Arc<ActiveAdapter>>,
}

impl Engine {
    /// An engine for one model.
    pub fn new(language_model: Arc<LanguageModel>, options: EngineOptions) -> Self {
        Self {
            language_model,
            options,
            waiting: VecDeque::new(),
            running: Vec::new(),
            prefixes: VecDeque::new(),
            next_id: 0,
        }
    }

    /// Takes a request; it runs with the next steps.
    pub fn submit(&mut self, request: &Request) -> Result<RequestId> {
        let tokenizer = trace::host_span("tokenizer");
        let tokens = self.language_model.prompt_tokens(&request.prompt)?;
        drop(tokenizer);
        let spec = self.language_model.model().spec();
        let (context, vocab_size) = (spec.max_positions, spec.vocab_size);
        if tokens.is_empty() {
            return Err(GenerateError::EmptyPrompt.into());
        }
        if tokens.len() >= context {
            return Err(GenerateError::PromptTooLong { tokens: tokens.len(), context }.into());
        }
        if request.max_tokens == Some(0) {
            return Err(GenerateError::NoTokens.into());
        }
        let limit = request.max_tokens.map_or(context, |most| context.min(tokens.len().saturating_add(most)));
        let id = RequestId(self.next_id);
        self.next_id += 1;
        let mut detokenizer = Detokenizer::new(Arc::clone(self.language_model.tokenizer()), true);
        detokenizer.prime(&tokens)?;
        let sampler = Sampler::new(request.sampling.clone(), vocab_size).map_err(GenerateError::from)?;
        let sequence = Sequence {
            id,
            limit,
            cache: self.start_cache(&tokens, request.adapter.as_ref()),
            history: sampler.history(&tokens),
            sampler,
            detokenizer,
            stop: StopMatcher::new(&request.stop, StopText::Exclude).map_err(GenerateError::from)?,
            ignore_eos: request.ignore_eos,
            adapter: request.adapter.clone(),
            tokens,
        };
        self.waiting.push_back(sequence);
        Ok(id)
    }

    /// Ends a request early; its slot is free from the next step on, and what its cache holds is kept as of one that
    /// ended by itself. Unknown ids are ignored.
    pub fn cancel(&mut self, request: RequestId) {
        self.waiting.retain(|sequence| sequence.id != request);
        if let Some(index) = self.running.iter().position(|sequence| sequence.id == request) {
            let sequence = self.running.remove(index);
            self.keep(sequence);
        }
    }

    /// Tokens of a submitted request's prompt, and how many of them its cache already holds; 0 for an unknown id.
    pub(super) fn prompt_tokens(&self, request: RequestId) -> (usize, usize) {
        let submitted = self.waiting.iter().find(|sequence| sequence.id == request);
        submitted.map_or((0, 0), |sequence| (sequence.tokens.len(), sequence.cache.len()))
    }

    /// Whether nothing is left to do.
    pub fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.running.is_empty()
    }

    /// One forward for the batch, and what came of it.
    pub fn step(&mut self) -> Result<Vec<Event>> {
        while self.running.len() < self.options.max_sequences.max(1) {
            let Some(sequence) = self.waiting.pop_front() else { break };
            self.running.push(sequence);
        }
        if self.running.is_empty() {
            return Ok(Vec::new());
        }
        let _step = trace::span("engine_step", self.language_model.model().device());
        for sequence in &mut self.running {
            self.language_model.model().restart_if_outgrown(&mut sequence.cache, sequence.tokens.len())?;
        }
        let rows = plan(&self.running, self.options.max_rows);
        let mut batch = Vec::with_capacity(rows.len());
        let mut finished_prompts = Vec::with_capacity(rows.len());
        for (index, (sequence, rows)) in self.running.iter_mut().zip(rows).enumerate() {
            if rows == 0 {
                continue;
            }
            let cached = sequence.cache.len();
            let last = cached + rows == sequence.tokens.len();
            if last {
                finished_prompts.push(index);
            }
            let tokens = &sequence.tokens[cached..cached + rows];
            let logits = if last { LogitsFor::Last } else { LogitsFor::None };
            let (cache, adapter) = (&mut sequence.cache, sequence.adapter.as_deref());
            batch.push(SequenceInput { tokens, cache, logits, adapter });
        }
        let logits = self.language_model.model().forward(&mut batch)?;
        self.choose(&finished_prompts, &logits)
    }

    /// Samples the next token of the sequences at `indices`, whose logits are the rows of `logits`.
    fn choose(&mut self, indices: &[usize], logits: &candle_core::Tensor) -> Result<Vec<Event>> {
        let mut events = Vec::with_capacity(indices.len());
        let mut ended = Vec::new();
        for (row, &index) in indices.iter().enumerate() {
            let copy = trace::host_span("logits_to_host");
            let mut logits = logits.get(row)?.to_vec1::<f32>()?;
            drop(copy);
            let sequence = &mut self.running[index];
            let outcome = sequence.next_token(&mut logits, &self.language_model);
            if !matches!(&outcome, Ok(token) if token.finish.is_none()) {
                ended.push(index);
            }
            events.push(Event { request: sequence.id, outcome });
        }
        for index in ended.into_iter().rev() {
            let sequence = self.running.remove(index);
            self.keep(sequence);
        }
        Ok(events)
    }

    /// The cache of the kept sequence that begins most like `tokens`, cut to the common part.
    fn start_cache(&self, tokens: &[u32], adapter: Option<&Arc<ActiveAdapter>>) -> KvCache {
        let model = self.language_model.model();
        let mut fresh = model.new_cache();
        fresh.expect(tokens.len());
        // At least one token must run, for its logits.
        let most = tokens.len() - 1;
        let common = |prefix: &Prefix| {
            let pairs = prefix.tokens.iter().zip(&tokens[..most]);
            pairs.take_while(|(left, right)| left == right).count().min(prefix.cache.len())
        };
        // Keys and values depend on the adapter as much as on the tokens.
        let same_adapter = |prefix: &&Prefix| match (&prefix.adapter, adapter) {
            (Some(left), Some(right)) => Arc::ptr_eq(left, right),
            (left, right) => left.is_none() && right.is_none(),
        };
        let alike = self.prefixes.iter().filter(same_adapter);
        let Some(prefix) = alike.max_by_key(|prefix| common(prefix)) else { return fresh };
        let shared = common(prefix);
        let length_matters = model.spec().ropes.iter().any(RopeSpec::depends_on_length);
        let mut fork = prefix.cache.fork();
        if shared == 0 || length_matters || fork.truncate(shared).is_err() {
            return fresh;
        }
        fork
    }

    fn keep(&mut self, sequence: Sequence) {
        // An empty cache would only push out one that is worth something.
        if self.options.kept_prefixes == 0 || sequence.cache.is_empty() {
            return;
        }
        if self.prefixes.len() >= self.options.kept_prefixes {
            self.prefixes.pop_front();
        }
        let Sequence { tokens, cache, adapter, .. } = sequence;
        self.prefixes.push_back(Prefix { tokens, cache, adapter });
    }
}

/// How many rows each sequence gets: one for those that decode, what is left for prompts in their order.
fn plan(running: &[Sequence], max_rows: usize) -> Vec<usize> {
    let pending = |sequence: &Sequence| sequence.tokens.len() - sequence.cache.len();
    let decoding = running.iter().filter(|sequence| pending(sequence) == 1).count();
    let mut left = max_rows.saturating_sub(decoding).max(1);
    let rows = running.iter().map(|sequence| match pending(sequence) {
        1 => 1,
        pending => {
            let rows = pending.min(left);
            left -= rows;
            rows
        }
    });
    rows.collect()
}

impl Sequence {
    fn next_token(&mut self, logits: &mut [f32], language_model: &LanguageModel) -> Result<StreamToken> {
        let sampling = trace::host_span("sampling");
        let sampled = self.sampler.sample(logits, &self.history).map_err(GenerateError::from)?;
        drop(sampling);
        let _detokenizer = trace::host_span("detokenizer");
        self.tokens.push(sampled.id);
        self.history.push(sampled.id);
        let mut token = StreamToken {
            id: sampled.id,
            text: String::new(),
            logprob: sampled.logprob,
            top_logprobs: sampled.top_logprobs,
            finish: None,
        };
        if !self.ignore_eos && language_model.end_of_sequence().contains(&sampled.id) {
            token.finish = Some(FinishReason::EndOfSequence);
        } else {
            let outcome = self.stop.push(&self.detokenizer.push(sampled.id)?);
            token.text = outcome.emit;
            token.finish = outcome.stopped.map(|_| FinishReason::StopString);
        }
        if token.finish.is_none() && self.tokens.len() >= self.limit {
            token.finish = Some(FinishReason::Length);
        }
        if matches!(token.finish, Some(FinishReason::EndOfSequence | FinishReason::Length)) {
            self.flush(&mut token)?;
        }
        Ok(token)
    }

    /// The text that was held back, unless it completes a stop string after all.
    fn flush(&mut self, token: &mut StreamToken) -> Result<()> {
        let outcome = self.stop.push(&self.detokenizer.finish()?);
        token.text += &outcome.emit;
        if outcome.stopped.is_some() {
            token.finish = Some(FinishReason::StopString);
        } else {
            token.text += &self.stop.flush().emit;
        }
        Ok(())
    }
}
