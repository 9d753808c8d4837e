//! Token ids to text, one id at a time.

use std::sync::Arc;

use super::{
    TextError, Tokenizer,
    decode_stages::{Stage, stages_of},
};

/// Turns ids into text as they come. Every piece is whole characters, and all pieces together are exactly what
/// [`Tokenizer::decode`] gives for all ids at once. The work per token does not grow with the text.
///
/// A piece can be empty: a character may need several tokens, and a run of byte tokens such as `<0x0A>` is only
/// decided when it ends. [`finish`](Self::finish) gives what was held back. A clone continues on its own.
#[derive(Debug, Clone)]
pub struct Detokenizer {
    tokenizer: Arc<Tokenizer>,
    skip_special_tokens: bool,
    stages: Vec<Stage>,
    /// Text of the context that is still held back in a stage: to be left out when it comes.
    context_tail: String,
}

impl Detokenizer {
    /// A detokenizer at the start of a text.
    pub fn new(tokenizer: Arc<Tokenizer>, skip_special_tokens: bool) -> Self {
        let stages = stages_of(tokenizer.decoder());
        Self { tokenizer, skip_special_tokens, stages, context_tail: String::new() }
    }

    /// Tells what comes before: these ids give no text themselves, but the next one decodes as their continuation,
    /// with its leading space. A character that is split between context and continuation comes with the latter.
    pub fn prime(&mut self, context: &[u32]) -> Result<(), TextError> {
        for id in context {
            self.advance(*id)?;
        }
        self.context_tail = self.clone().drain()?;
        Ok(())
    }

    /// The text that is certain after one more id; possibly empty. Ids outside the vocabulary stand for nothing.
    pub fn push(&mut self, id: u32) -> Result<String, TextError> {
        let text = self.advance(id)?;
        Ok(self.without_context(text))
    }

    /// The rest of the text. The detokenizer must not be used for more ids afterwards.
    pub fn finish(&mut self) -> Result<String, TextError> {
        let text = self.drain()?;
        Ok(self.without_context(text))
    }

    fn advance(&mut self, id: u32) -> Result<String, TextError> {
        let Some(token) = self.tokenizer.piece(id, self.skip_special_tokens) else {
            return Ok(String::new());
        };
        run(&mut self.stages, vec![token])
    }

    fn drain(&mut self) -> Result<String, TextError> {
        let mut text = String::new();
        for index in 0..self.stages.len() {
            let mut held = Vec::new();
            self.stages[index].finish(&mut held)?;
            text += &run(&mut self.stages[index + 1..], held)?;
        }
        Ok(text)
    }

    /// Leaves out what the context had held back. If the continuation changed that text, as it does when it completes
    /// a character, it is not the context's any more.
    fn without_context(&mut self, mut text: String) -> String {
        if self.context_tail.is_empty() || text.is_empty() {
            return text;
        }
        let shared: usize = self
            .context_tail
            .chars()
            .zip(text.chars())
            .take_while(|(ours, theirs)| ours == theirs)
            .map(|(character, _)| character.len_utf8())
            .sum();
        if shared == text.len() {
            self.context_tail.drain(..shared);
        } else {
            self.context_tail.clear();
        }
        text.drain(..shared);
        text
    }
}

fn run(stages: &mut [Stage], mut tokens: Vec<String>) -> Result<String, TextError> {
    for stage in stages {
        let mut out = Vec::with_capacity(tokens.len());
        for token in tokens {
            stage.push(token, &mut out)?;
        }
        tokens = out;
    }
    Ok(tokens.concat())
}
