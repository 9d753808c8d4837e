//! From logits to one token.
//!
//! [`SamplingParams`] says what happens in which order. A [`Sampler`] belongs to one sequence: it owns the random
//! numbers and the scratch memory, so that a token costs no allocation. [`TokenHistory`] has the counts for penalties.

mod filters;
mod generation_config;
mod histogram;
mod history;
mod params;
pub(crate) mod random;
mod scan;
mod select;
#[cfg(test)]
mod tests;

pub use history::{Occurrences, TokenHistory};
pub use params::SamplingParams;
pub use random::RandomState;

use filters::{Candidates, Share};
use random::SequenceRandom;
use select::Scratch;

/// Sampling was asked for something impossible, or the logits are broken.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum SamplingError {
    /// A parameter is out of range.
    #[error("sampling parameter `{field}` is {value}; allowed is {allowed}")]
    OutOfRange {
        /// The field of [`SamplingParams`].
        field: &'static str,
        /// What it was.
        value: String,
        /// What it may be.
        allowed: &'static str,
    },
    /// `logit_bias` names a token that the model does not have.
    #[error(
        "sampling parameter `logit_bias` names token {id}, but the vocabulary has {vocab_size} tokens, counted from 0"
    )]
    BiasToken {
        /// The token.
        id: u32,
        /// Tokens of the model.
        vocab_size: usize,
    },
    /// A value in `generation_config.json` is of the wrong type.
    #[error("generation_config.json: `{key}` is {value}, expected {expected}")]
    ConfigType {
        /// The key.
        key: String,
        /// Its JSON value.
        value: String,
        /// What it should be.
        expected: &'static str,
    },
    /// `generation_config.json` asks for a way of choosing tokens that does not exist here.
    #[error(
        "generation_config.json asks for `{key}` = {value}, which is not supported; remove the key to generate without it"
    )]
    ConfigUnsupported {
        /// The key.
        key: &'static str,
        /// Its JSON value.
        value: String,
    },
    /// The logits are not those of this sampler's vocabulary.
    #[error("got {found} logits for a vocabulary of {expected} tokens")]
    LogitCount {
        /// How many there are.
        found: usize,
        /// The size of the vocabulary.
        expected: usize,
    },
    /// A logit is NaN or positive infinity.
    #[error(
        "the logit of token {id} is {value}: the model's weights are damaged, or its activations overflow their dtype"
    )]
    BrokenLogit {
        /// The first such token.
        id: usize,
        /// NaN or infinity.
        value: f32,
    },
    /// Every logit is negative infinity.
    #[error(
        "every token is ruled out: all logits are negative infinity; check `logit_bias` and the model's output"
    )]
    NothingLeft,
    /// The history holds a token that the model does not have.
    #[error("the history holds token {id}, but the vocabulary has {vocab_size} tokens, counted from 0")]
    HistoryToken {
        /// The token.
        id: u32,
        /// Tokens of the model.
        vocab_size: usize,
    },
    /// The history counts over another window than the repetition penalty.
    #[error(
        "the history was made with repetition_context {history:?}, the sampler with {params:?}; use `Sampler::history`"
    )]
    HistoryContext {
        /// The window of the history.
        history: Option<usize>,
        /// The window of the parameters.
        params: Option<usize>,
    },
}

/// A token and the natural logarithm of its probability.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TokenLogprob {
    /// The token.
    pub id: u32,
    /// Its log-probability.
    pub logprob: f32,
}

/// What one step chose.
#[derive(Clone, Debug, PartialEq)]
pub struct Sampled {
    /// The chosen token.
    pub id: u32,
    /// Its log-probability, if [`SamplingParams::logprobs`] asks for it.
    pub logprob: Option<f32>,
    /// The most likely tokens, best first; as many as [`SamplingParams::logprobs`] says.
    pub top_logprobs: Vec<TokenLogprob>,
}

/// Chooses the tokens of one sequence.
#[derive(Clone, Debug)]
pub struct Sampler {
    params: SamplingParams,
    vocab_size: usize,
    random: SequenceRandom,
    candidates: Candidates,
    maxima: Vec<f32>,
    scratch: Scratch,
    /// Keys of the tokens that `top_k` or the log-probabilities selected.
    selected: Vec<u64>,
    /// The logits of the tokens that `top_k` selected.
    selected_logits: Vec<f32>,
    /// The model's own logits, while log-probabilities are asked for.
    raw_logits: Vec<f32>,
}

impl Sampler {
    /// A sampler for one sequence of a model with `vocab_size` logits.
    pub fn new(params: SamplingParams, vocab_size: usize) -> Result<Self, SamplingError> {
        params.validate(vocab_size)?;
        let seed = params.seed.unwrap_or_else(rand::random);
        Ok(Self {
            params,
            vocab_size,
            random: SequenceRandom::new(seed),
            candidates: Candidates::default(),
            maxima: Vec::new(),
            scratch: Scratch::default(),
            selected: Vec::new(),
            selected_logits: Vec::new(),
            raw_logits: Vec::new(),
        })
    }

    /// A history for this sampler's penalties that begins with `prompt`.
    pub fn history(&self, prompt: &[u32]) -> TokenHistory {
        TokenHistory::new(prompt, self.params.repetition_context)
    }

    /// Chooses the next token. Uses `logits` as scratch: their values are lost.
    pub fn sample(&mut self, logits: &mut [f32], history: &TokenHistory) -> Result<Sampled, SamplingError> {
        if logits.len() != self.vocab_size {
            return Err(SamplingError::LogitCount { found: logits.len(), expected: self.vocab_size });
        }
        let mut log_normalizer = 0.0;
        let mut top_logprobs = Vec::new();
        if let Some(count) = self.params.logprobs {
            (log_normalizer, top_logprobs) = self.log_probabilities(logits, count)?;
        }
        self.penalize(logits, history)?;
        let best = self.scan(logits)?;
        let id = if self.params.is_greedy() {
            scan::first_position(logits, &self.maxima, best).expect("the scan found this maximum")
        } else {
            self.draw(logits)
        };
        let logprob = self.params.logprobs.map(|_| (f64::from(self.raw_logits[id]) - log_normalizer) as f32);
        Ok(Sampled { id: id as u32, logprob, top_logprobs })
    }

    /// The parameters.
    pub fn params(&self) -> &SamplingParams {
        &self.params
    }

    /// The seed and how far it has been used: a run can be repeated from the seed, also one that the operating system
    /// chose, or continued from here.
    pub fn random_state(&self) -> RandomState {
        self.random.state()
    }

    /// Continues another run's random numbers.
    pub fn restore_random(&mut self, state: RandomState) {
        self.random = SequenceRandom::restore(state);
    }

    /// The log of the sum of all exponentials, and the `count` most likely tokens. Keeps a copy of the logits.
    fn log_probabilities(
        &mut self,
        logits: &[f32],
        count: usize,
    ) -> Result<(f64, Vec<TokenLogprob>), SamplingError> {
        self.raw_logits.clear();
        self.raw_logits.extend_from_slice(logits);
        let best = self.scan(logits)?;
        let total = scan::total_weight(logits, best, std::f32::consts::LOG2_E);
        let log_normalizer = f64::from(best) + total.ln();
        if count == 0 {
            return Ok((log_normalizer, Vec::new()));
        }
        select::select_largest(logits, &self.maxima, count, &mut self.scratch, &mut self.selected);
        self.selected.sort_unstable();
        let token = |&member: &u64| {
            let position = select::position_of(member);
            let logprob = (f64::from(logits[position]) - log_normalizer) as f32;
            TokenLogprob { id: position as u32, logprob }
        };
        Ok((log_normalizer, self.selected.iter().map(token).collect()))
    }

    /// Bias, then penalties. Each touches only the tokens that it names.
    fn penalize(&self, logits: &mut [f32], history: &TokenHistory) -> Result<(), SamplingError> {
        let params = &self.params;
        for (&id, &bias) in &params.logit_bias {
            logits[id as usize] += bias;
        }
        let repetition = params.repetition_penalty != 1.0;
        if !repetition && params.presence_penalty == 0.0 && params.frequency_penalty == 0.0 {
            return Ok(());
        }
        if repetition && history.repetition_context() != params.repetition_context {
            return Err(SamplingError::HistoryContext {
                history: history.repetition_context(),
                params: params.repetition_context,
            });
        }
        let vocab_size = self.vocab_size;
        for (id, occurrences) in history.iter() {
            let logit = logits.get_mut(id as usize).ok_or(SamplingError::HistoryToken { id, vocab_size })?;
            if occurrences.recent > 0 && repetition {
                let penalty = params.repetition_penalty;
                *logit = if *logit > 0.0 { *logit / penalty } else { *logit * penalty };
            }
            if occurrences.generated > 0 {
                *logit -= params.presence_penalty + params.frequency_penalty * occurrences.generated as f32;
            }
        }
        Ok(())
    }

    /// Finds the block maxima and returns the largest logit, a finite one.
    fn scan(&mut self, logits: &[f32]) -> Result<f32, SamplingError> {
        scan::block_maxima(logits, &mut self.maxima)
            .map_err(|id| SamplingError::BrokenLogit { id, value: f32::NAN })?;
        let best = scan::largest(&self.maxima);
        if best == f32::NEG_INFINITY {
            return Err(SamplingError::NothingLeft);
        }
        if best == f32::INFINITY {
            let id = scan::first_position(logits, &self.maxima, best).expect("the scan found this maximum");
            return Err(SamplingError::BrokenLogit { id, value: best });
        }
        Ok(best)
    }

    /// Draws a token by temperature and filters.
    fn draw(&mut self, logits: &mut [f32]) -> usize {
        let top_k = self.params.top_k;
        if top_k == 0 || top_k >= logits.len() {
            let share = self.filter(logits);
            return self.draw_from(logits, share);
        }
        // The rest happens among the selected tokens alone, still in the order of their ids.
        select::select_largest(logits, &self.maxima, top_k, &mut self.scratch, &mut self.selected);
        self.selected.sort_unstable_by_key(|&member| select::position_of(member));
        let mut levels = std::mem::take(&mut self.selected_logits);
        levels.clear();
        levels.extend(self.selected.iter().map(|&member| logits[select::position_of(member)]));
        scan::block_maxima(&levels, &mut self.maxima).expect("NaN has been ruled out");
        let share = self.filter(&mut levels);
        let position = self.draw_from(&levels, share);
        self.selected_logits = levels;
        select::position_of(self.selected[position])
    }

    /// Applies the temperature, which turns the logits into levels, and the filters after `top_k`. What remains to be
    /// respected is the share that is returned: it comes last, and then drawing from it is cheaper than to cut it out.
    fn filter(&mut self, logits: &mut [f32]) -> Option<Share> {
        let Self { params, candidates, random, .. } = self;
        let exclude_top =
            params.xtc_probability > 0.0 && random.uniform() < f64::from(params.xtc_probability);
        let typical = params.typical_p < 1.0;
        candidates.weigh(logits, &self.maxima, params.temperature);
        let levels = &*logits;
        let mut last = None;
        if params.top_p < 1.0 {
            let share = Share { center: 0.0, mass: f64::from(params.top_p) * candidates.total() };
            if typical || exclude_top {
                candidates.keep_share(levels, share);
            } else {
                last = Some(share);
            }
        }
        if params.min_p > 0.0 {
            candidates.keep_min_p(params.min_p);
        }
        if typical {
            let center = candidates.expected_level(levels);
            let share = Share { center, mass: f64::from(params.typical_p) * candidates.total() };
            if exclude_top {
                candidates.keep_share(levels, share);
            } else {
                last = Some(share);
            }
        }
        if exclude_top {
            candidates.exclude_top(params.xtc_threshold);
        }
        last
    }

    /// Draws a position; from within a share if there is one.
    fn draw_from(&mut self, levels: &[f32], share: Option<Share>) -> usize {
        loop {
            let drawn = self.candidates.draw(self.random.uniform());
            let position = drawn.expect("every filter, and every draw outside the share, leaves a candidate");
            if share.is_none_or(|share| self.candidates.reaches(levels, share, position)) {
                return position;
            }
        }
    }
}
