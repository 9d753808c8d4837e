//! What is not kept for the way back, but computed again there: less memory, more time.

use std::fmt;

use serde::Serialize;

/// How much of how many blocks is computed again on the way back.
///
/// An MLP is the better bargain: its gate and up are most of what a block keeps, and one product makes them again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct Recompute {
    /// So many blocks keep only their input.
    pub blocks: usize,
    /// So many others keep all but their MLP.
    pub mlps: usize,
}

/// What is computed again in one block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Again {
    Nothing,
    Mlp,
    Block,
}

impl Recompute {
    /// Everything is kept.
    pub const NONE: Self = Self { blocks: 0, mlps: 0 };
    /// Every block keeps only its input.
    pub const ALL: Self = Self { blocks: usize::MAX, mlps: 0 };

    /// The choices for a model of so many blocks, from the least extra work to the least memory.
    pub fn ladder(blocks: usize) -> impl Iterator<Item = Self> {
        let mlps = (0..=blocks).map(|mlps| Self { blocks: 0, mlps });
        mlps.chain((1..=blocks).map(move |whole| Self { blocks: whole, mlps: blocks - whole }))
    }

    /// This, for a model that has not more than so many blocks to walk back.
    pub fn within(self, blocks: usize) -> Self {
        let whole = self.blocks.min(blocks);
        Self { blocks: whole, mlps: self.mlps.min(blocks - whole) }
    }

    /// Of the block with this number, counted from the first that is walked back.
    pub(crate) fn of_block(self, number: usize) -> Again {
        match number.checked_sub(self.blocks) {
            None => Again::Block,
            Some(rest) if rest < self.mlps => Again::Mlp,
            Some(_) => Again::Nothing,
        }
    }
}

impl fmt::Display for Recompute {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::NONE => write!(f, "nothing"),
            Self { blocks: 0, mlps } => count(f, mlps, "MLP"),
            Self { blocks, mlps: 0 } => count(f, blocks, "block"),
            Self { blocks, mlps } => {
                count(f, blocks, "block")?;
                write!(f, " and ")?;
                count(f, mlps, "MLP")
            }
        }
    }
}

fn count(f: &mut fmt::Formatter<'_>, number: usize, name: &str) -> fmt::Result {
    write!(f, "{number} {name}{}", if number == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_blocks_come_first_and_then_mlps() {
        let recompute = Recompute { blocks: 2, mlps: 1 };
        let found: Vec<Again> = (0..4).map(|number| recompute.of_block(number)).collect();
        assert_eq!(found, [Again::Block, Again::Block, Again::Mlp, Again::Nothing]);
        assert_eq!(Recompute::ALL.of_block(1000), Again::Block);
        assert_eq!(Recompute::NONE.of_block(0), Again::Nothing);
    }

    #[test]
    fn the_ladder_takes_mlps_before_blocks() {
        let words: Vec<String> = Recompute::ladder(2).map(|step| step.to_string()).collect();
        assert_eq!(words, ["nothing", "1 MLP", "2 MLPs", "1 block and 1 MLP", "2 blocks"]);
        assert_eq!(Recompute::ALL.within(3), Recompute { blocks: 3, mlps: 0 });
        assert_eq!(Recompute { blocks: 2, mlps: 9 }.within(3), Recompute { blocks: 2, mlps: 1 });
    }
}
