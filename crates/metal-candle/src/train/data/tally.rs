//! What was met in the data.

use crate::data::BadLines;

/// What a loader has met so far. Examples count each time that they are read: in every epoch.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tally {
    /// Lines that became tokens.
    pub examples: u64,
    /// Their tokens, before anything was cut.
    pub tokens: u64,
    /// The tokens that count, after the cut.
    pub counted: u64,
    /// Examples that were longer than `max_seq_length`.
    pub cut: u64,
    /// Tokens that were cut off.
    pub tokens_lost: u64,
    /// Examples that were left out because all that counts was cut off.
    pub cut_away: u64,
    /// Examples that were left out because nothing in them counts, such as a conversation without an assistant.
    pub without_targets: u64,
    /// Lines that could not be made into tokens; those of a bad form are in [`DataFile::bad_lines`](super::DataFile).
    pub bad: BadLines,
    /// How long the examples are, before the cut.
    pub lengths: Lengths,
}

impl Tally {
    /// Examples that were left out.
    pub fn left_out(&self) -> u64 {
        self.cut_away + self.without_targets
    }
}

/// A histogram of lengths. The first bar counts up to 16 tokens, each further one up to twice as many as the one before.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Lengths {
    bars: Vec<u64>,
    longest: usize,
}

impl Lengths {
    const FIRST: usize = 16;

    /// Counts an example.
    pub fn add(&mut self, tokens: usize) {
        let bar = tokens.div_ceil(Self::FIRST).max(1).next_power_of_two().ilog2() as usize;
        if self.bars.len() <= bar {
            self.bars.resize(bar + 1, 0);
        }
        self.bars[bar] += 1;
        self.longest = self.longest.max(tokens);
    }

    /// The bars: the most tokens that each counts, and how many examples there are.
    pub fn bars(&self) -> impl Iterator<Item = (usize, u64)> {
        self.bars.iter().enumerate().map(|(bar, &count)| (Self::FIRST << bar, count))
    }

    /// The tokens of the longest.
    pub fn longest(&self) -> usize {
        self.longest
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_length_is_counted_under_the_next_bound() {
        let mut lengths = Lengths::default();
        for tokens in [0, 1, 16, 17, 32, 33, 100, 128, 129] {
            lengths.add(tokens);
        }
        assert_eq!(lengths.bars().collect::<Vec<_>>(), [(16, 3), (32, 2), (64, 1), (128, 2), (256, 1)]);
        assert_eq!(lengths.longest(), 129);
    }
}
