//! Rows of several sequences side by side: what one forward and backward pass takes.

use metal_candle_kernels::cross_entropy::IGNORED;
use serde::{Deserialize, Serialize};

use super::Cursor;
use crate::data::Example;

/// Padded sequences are as long as the next multiple of this.
const PADDED_ROWS: usize = 32;

/// How examples share a batch. In all ways a row sees only rows of its own sequence.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Batching {
    /// `batch_size` examples, one after another, no padding.
    #[default]
    Concatenated,
    /// `batch_size` bins of `max_seq_length` rows, filled with whole examples by best fit, longest first: every batch
    /// has nearly the same number of rows.
    Packed,
    /// `batch_size` examples of similar length, each padded to the longest and to a multiple of 32.
    Padded,
}

/// Sequences for one forward and backward pass.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch {
    /// Of each row its token.
    pub tokens: Vec<u32>,
    /// Of each row the token that follows in its example, or [`IGNORED`] where that does not count.
    pub targets: Vec<u32>,
    /// The first row of each sequence, then the number of rows, as `PackedAttention` of the kernels wants it. Positions
    /// begin anew in each sequence.
    pub starts: Vec<u32>,
    /// How many sequences, each one example.
    pub examples: usize,
    /// How many rows are no padding.
    pub useful: usize,
    /// How many targets are not [`IGNORED`].
    pub counted: usize,
    /// How many rows would fit: those of the bins for [`Batching::Packed`], else those that are there.
    pub room: usize,
    /// The epoch that the batch belongs to, from 0.
    pub epoch: u64,
    /// Where the next batch is.
    pub next: Cursor,
}

impl Batch {
    /// How many rows.
    pub fn rows(&self) -> usize {
        self.tokens.len()
    }

    /// Of each row its position in its sequence.
    pub fn positions(&self) -> Vec<u32> {
        self.starts.windows(2).flat_map(|pair| 0..pair[1] - pair[0]).collect()
    }

    /// The rows of the longest sequence.
    pub fn longest(&self) -> usize {
        self.starts.windows(2).map(|pair| (pair[1] - pair[0]) as usize).max().unwrap_or(0)
    }
}

/// The rows of one example. The last token has none: what it would predict is not there; nor has any token after the
/// last target: no row that counts sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Sequence {
    tokens: Vec<u32>,
    targets: Vec<u32>,
}

impl Sequence {
    /// `None` if no token counts.
    pub(super) fn new(example: Example) -> Option<Self> {
        let Example { mut tokens, counted } = example;
        // The first token is never counted.
        let rows = counted.iter().rposition(|&counts| counts).filter(|&rows| rows > 0)?;
        let next = tokens[1..=rows].iter().zip(&counted[1..=rows]);
        let targets = next.map(|(&token, &counts)| if counts { token } else { IGNORED }).collect();
        tokens.truncate(rows);
        Some(Self { tokens, targets })
    }

    pub(super) fn rows(&self) -> usize {
        self.tokens.len()
    }
}

/// What of a loader a batch depends on.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place {
    pub(super) batching: Batching,
    pub(super) max_seq_length: usize,
    pub(super) epoch: u64,
    pub(super) next: Cursor,
}

/// Lays sequences side by side. They are given bin by bin.
pub(super) fn assemble(bins: &[Vec<usize>], sequences: &[Sequence], place: Place) -> Batch {
    let members = || bins.iter().flatten().map(|&index| &sequences[index]);
    let longest = members().map(Sequence::rows).max().unwrap_or(0);
    let padded_rows = match place.batching {
        Batching::Padded => longest.next_multiple_of(PADDED_ROWS).min(place.max_seq_length),
        Batching::Concatenated | Batching::Packed => 0,
    };
    let mut batch = Batch {
        tokens: Vec::new(),
        targets: Vec::new(),
        starts: vec![0],
        examples: 0,
        useful: 0,
        counted: 0,
        room: 0,
        epoch: place.epoch,
        next: place.next,
    };
    for sequence in members() {
        batch.tokens.extend(&sequence.tokens);
        batch.targets.extend(&sequence.targets);
        // Padding belongs to the sequence before it, whose rows do not see it. Token 0 is in every vocabulary.
        let padding = padded_rows.saturating_sub(sequence.rows());
        batch.tokens.extend(std::iter::repeat_n(0, padding));
        batch.targets.extend(std::iter::repeat_n(IGNORED, padding));
        let rows =
            u32::try_from(batch.tokens.len()).expect("a batch of fewer than 2^32 rows: options are checked");
        batch.starts.push(rows);
        batch.examples += 1;
        batch.useful += sequence.rows();
    }
    batch.counted = batch.targets.iter().filter(|&&target| target != IGNORED).count();
    batch.room = match place.batching {
        Batching::Packed => bins.len() * place.max_seq_length,
        Batching::Concatenated | Batching::Padded => batch.tokens.len(),
    };
    batch
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example(tokens: &[u32], counted: &[u32]) -> Example {
        let counted = tokens.iter().map(|token| counted.contains(token)).collect();
        Example { tokens: tokens.to_vec(), counted }
    }

    fn place(batching: Batching) -> Place {
        Place { batching, max_seq_length: 40, epoch: 3, next: Cursor::default() }
    }

    #[test]
    fn a_row_predicts_the_next_token_and_rows_after_the_last_target_are_left_out() {
        let sequence = Sequence::new(example(&[5, 6, 7, 8, 9], &[6, 8])).unwrap();
        assert_eq!(sequence, Sequence { tokens: vec![5, 6, 7], targets: vec![6, IGNORED, 8] });
        for nothing in [example(&[5, 6], &[]), example(&[5], &[]), example(&[], &[])] {
            assert_eq!(Sequence::new(nothing), None);
        }
    }

    #[test]
    fn sequences_lie_side_by_side() {
        let sequences = [(&[5, 6, 7][..], &[7][..]), (&[1, 2], &[2])]
            .map(|(tokens, counted)| Sequence::new(example(tokens, counted)).unwrap());
        let batch = assemble(&[vec![1, 0]], &sequences, place(Batching::Packed));
        assert_eq!((&batch.tokens[..], &batch.targets[..]), (&[1, 5, 6][..], &[2, IGNORED, 7][..]));
        assert_eq!((&batch.starts[..], &batch.positions()[..]), (&[0, 1, 3][..], &[0, 0, 1][..]));
        assert_eq!((batch.examples, batch.useful, batch.counted, batch.room), (2, 3, 2, 40));
        assert_eq!((batch.rows(), batch.longest(), batch.epoch), (3, 2, 3));
    }

    #[test]
    fn padding_reaches_the_next_multiple_of_32_but_not_beyond_the_limit() {
        let sequence = |rows: u32| {
            let tokens: Vec<u32> = (1..=rows + 1).collect();
            Sequence::new(example(&tokens, &tokens[1..])).unwrap()
        };
        for (rows, padded) in [(3, 32), (32, 32), (33, 40)] {
            let batch =
                assemble(&[vec![0], vec![1]], &[sequence(1), sequence(rows)], place(Batching::Padded));
            assert_eq!(batch.starts, [0, padded, 2 * padded]);
            assert_eq!((batch.useful, batch.counted), (1 + rows as usize, 1 + rows as usize));
            assert!(batch.targets[1..padded as usize].iter().all(|&target| target == IGNORED));
        }
    }
}
