//! How often each token has occurred, kept up to date token by token.

use std::collections::HashMap;

/// The tokens of one sequence, prompt first, with the counts that the penalties need. Pushing and truncating cost the
/// tokens that come or go, never a walk over the whole sequence. A clone is a fork: both go on alone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenHistory {
    tokens: Vec<u32>,
    prompt_len: usize,
    repetition_context: Option<usize>,
    occurrences: HashMap<u32, Occurrences>,
}

/// How often one token occurs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Occurrences {
    /// Among the last `repetition_context` tokens, prompt and generated.
    pub recent: u32,
    /// Among all generated tokens.
    pub generated: u32,
}

impl TokenHistory {
    /// A history that begins with a prompt. `repetition_context` is that of the
    /// [`SamplingParams`](super::SamplingParams) it will be used with.
    pub fn new(prompt: &[u32], repetition_context: Option<usize>) -> Self {
        let mut history = Self {
            tokens: prompt.to_vec(),
            prompt_len: prompt.len(),
            repetition_context,
            occurrences: HashMap::new(),
        };
        for position in history.window_start(prompt.len())..prompt.len() {
            history.entry(position).recent += 1;
        }
        history
    }

    /// Appends a generated token.
    pub fn push(&mut self, id: u32) {
        let position = self.tokens.len();
        self.tokens.push(id);
        let occurrences = self.entry(position);
        occurrences.recent += 1;
        occurrences.generated += 1;
        // The token that the window leaves behind; with a window of 0 it is the new one itself.
        let start = self.window_start(position + 1);
        if start > self.window_start(position) {
            self.update(start - 1, |occurrences| occurrences.recent -= 1);
        }
    }

    /// Keeps the first `len` tokens, as if the others had never come. Does nothing if there are no more than `len`.
    pub fn truncate(&mut self, len: usize) {
        while self.tokens.len() > len {
            let last = self.tokens.len() - 1;
            let start = self.window_start(last + 1);
            if start > self.window_start(last) {
                self.entry(start - 1).recent += 1;
            }
            let generated = u32::from(last >= self.prompt_len);
            self.update(last, |occurrences| {
                occurrences.recent -= 1;
                occurrences.generated -= generated;
            });
            self.tokens.pop();
        }
        self.prompt_len = self.prompt_len.min(len);
    }

    /// All tokens, prompt first.
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// The generated tokens.
    pub fn generated(&self) -> &[u32] {
        &self.tokens[self.prompt_len..]
    }

    /// How often `id` has occurred.
    pub fn occurrences(&self, id: u32) -> Occurrences {
        self.occurrences.get(&id).copied().unwrap_or_default()
    }

    /// How many of the last tokens `recent` counts; `None` counts all.
    pub fn repetition_context(&self) -> Option<usize> {
        self.repetition_context
    }

    /// Every token that a penalty may concern, in no order.
    pub(super) fn iter(&self) -> impl Iterator<Item = (u32, Occurrences)> {
        self.occurrences.iter().map(|(&id, &occurrences)| (id, occurrences))
    }

    /// Where the window begins when the sequence has `len` tokens.
    fn window_start(&self, len: usize) -> usize {
        self.repetition_context.map_or(0, |context| len.saturating_sub(context))
    }

    fn entry(&mut self, position: usize) -> &mut Occurrences {
        self.occurrences.entry(self.tokens[position]).or_default()
    }

    /// Changes the counts of the token at `position` and forgets a token without any.
    fn update(&mut self, position: usize, change: impl FnOnce(&mut Occurrences)) {
        let occurrences = self.entry(position);
        change(occurrences);
        if *occurrences == Occurrences::default() {
            self.occurrences.remove(&self.tokens[position]);
        }
    }
}
