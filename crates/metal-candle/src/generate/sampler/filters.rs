//! The tokens that may still be drawn. Nothing here sorts the vocabulary.
//!
//! A filter that keeps "the best until their mass reaches p" is a [`Share`]. If it comes last, its border is never
//! looked for: a token is drawn, and one scan for the mass before it says whether it belongs to the share; if not, the
//! token and all beyond are dropped and another is drawn, which leaves the tokens of the share their exact
//! probabilities. If another filter follows, the border is found in a histogram and settled by selection.

use super::{
    histogram::Histogram,
    scan::{self, BLOCK, LANES, passes},
    select::{member, position_of},
};

/// The weights of the candidates: `2^level`, the best one weighs 1, a dropped one 0. Scratch that is kept between
/// tokens. Positions ascend with token ids; of equal candidates the lower position is kept first.
#[derive(Clone, Debug, Default)]
pub(super) struct Candidates {
    weights: Vec<f32>,
    /// Sum of the weights of each block; blocks of no mass are skipped by every scan.
    masses: Vec<f32>,
    histogram: Histogram,
    border: Vec<u64>,
}

/// The smallest set of candidates, nearest to `center` first, whose masses add up to `mass`; at least one.
#[derive(Clone, Copy, Debug)]
pub(super) struct Share {
    /// The level whose neighbours are kept: 0 for the most likely ones.
    pub(super) center: f32,
    /// In units of the best candidate's weight.
    pub(super) mass: f64,
}

impl Candidates {
    /// Weighs all of `logits`, whose block maxima are `maxima`, at a temperature, and turns them into levels: log2 of
    /// the weight. Levels of blocks without any mass are left undefined.
    pub(super) fn weigh(&mut self, logits: &mut [f32], maxima: &[f32], temperature: f32) {
        // The cap keeps 0 · scale a zero at the tiniest temperatures.
        let scale = (std::f32::consts::LOG2_E / temperature).min(1e30);
        self.weights.resize(logits.len(), 0.0);
        self.masses.resize(maxima.len(), 0.0);
        scan::weigh(logits, &mut self.weights, &mut self.masses, maxima, scan::largest(maxima), scale);
    }

    /// Whether the candidate at `position` belongs to a share. If it does not, it and all beyond it are dropped.
    pub(super) fn reaches(&mut self, levels: &[f32], share: Share, position: usize) -> bool {
        scan::keep_nearer(levels, &mut self.weights, &mut self.masses, share.center, position);
        let before = self.total();
        before < share.mass || before == 0.0
    }

    /// Drops all candidates outside a share.
    pub(super) fn keep_share(&mut self, levels: &[f32], share: Share) {
        self.histogram.weigh(levels, share.center, &self.weights, &self.masses);
        let Some((bucket, missing)) = self.histogram.border(share.mass) else { return };
        self.border.clear();
        cut_beyond(levels, &mut self.weights, &self.masses, share.center, bucket, &mut self.border);
        let kept = partition_by_mass(&mut self.border, &self.weights, missing);
        for &member in &self.border[kept..] {
            self.weights[position_of(member)] = 0.0;
        }
        scan::sum_blocks(&self.weights, &mut self.masses);
    }

    /// Drops every candidate that is less than `ratio` times as likely as the best one.
    pub(super) fn keep_min_p(&mut self, ratio: f32) {
        scan::keep_between(&mut self.weights, &mut self.masses, ratio, f32::INFINITY, 0.0);
    }

    /// Of the candidates whose probability is at least `threshold`, keeps only the least likely (all of them, should
    /// several be equal).
    pub(super) fn exclude_top(&mut self, threshold: f32) {
        let floor = (f64::from(threshold) * self.total()) as f32;
        let mut least = f32::INFINITY;
        for (weights, &mass) in self.weights.chunks(BLOCK).zip(&self.masses) {
            if mass > 0.0 && mass >= floor * 0.999 {
                let candidates = weights.iter().filter(|&&weight| weight > 0.0 && weight >= floor);
                least = candidates.fold(least, |least, &weight| least.min(weight));
            }
        }
        scan::keep_between(&mut self.weights, &mut self.masses, 0.0, least, least * 0.999);
    }

    /// The mass of all candidates.
    pub(super) fn total(&self) -> f64 {
        self.masses.iter().map(|&mass| f64::from(mass)).sum()
    }

    /// The mean level of a token drawn now. Its distance to a token's level is how atypical that token is.
    pub(super) fn expected_level(&self, levels: &[f32]) -> f32 {
        (scan::weighted_levels(levels, &self.weights, &self.masses) / self.total()) as f32
    }

    /// The position that a uniform number in `0..1` draws. `None` only if nothing is left.
    pub(super) fn draw(&self, uniform: f64) -> Option<usize> {
        let mut rest = uniform * self.total();
        let mut last_block = None;
        for (block, &mass) in self.masses.iter().enumerate().filter(|(_, mass)| **mass > 0.0) {
            last_block = Some(block);
            if rest < f64::from(mass) {
                break;
            }
            rest -= f64::from(mass);
        }
        // Sums round: when the walk runs over the end, the last live candidate before it is the one.
        let start = last_block? * BLOCK;
        let end = self.weights.len().min(start + BLOCK);
        let mut last = None;
        for (offset, &weight) in
            self.weights[start..end].iter().enumerate().filter(|(_, weight)| **weight > 0.0)
        {
            last = Some(start + offset);
            if rest < f64::from(weight) {
                break;
            }
            rest -= f64::from(weight);
        }
        last
    }

    /// The weights: 0 for what was dropped.
    #[cfg(test)]
    pub(super) fn weights(&self) -> &[f32] {
        &self.weights
    }

    /// How many candidates the last border was settled among.
    #[cfg(test)]
    pub(super) fn border_size(&self) -> usize {
        self.border.len()
    }
}

passes! {
    /// Drops what lies beyond the border bucket and lists its members, as keys that sort nearest first.
    fn cut_beyond<'a>(
        levels: &'a [f32], weights: &'a mut [f32], masses: &'a [f32], center: f32, bucket: i32, border: &'a mut Vec<u64>,
    ) {
        let mut places = [0i32; BLOCK];
        let blocks = levels.chunks(BLOCK).zip(weights.chunks_mut(BLOCK)).zip(masses).enumerate();
        for (block, ((levels, weights), _)) in blocks.filter(|(_, (_, mass))| **mass > 0.0) {
            scan::places(levels, center, &mut places);
            // Row by row: most rows hold no member, and those are passed over without a branch per element.
            for (row, weights) in weights.chunks_mut(LANES).enumerate() {
                let first = row * LANES;
                if !scan::drop_beyond(weights, &places[first..first + LANES], bucket) {
                    continue;
                }
                for (lane, &weight) in weights.iter().enumerate() {
                    let offset = first + lane;
                    if places[offset] == bucket && weight > 0.0 {
                        let distance = scan::distance(levels[offset], center) as u32;
                        border.push(member(distance, block * BLOCK + offset));
                    }
                }
            }
        }
    }
}

/// Moves the smallest keys to the front, just as many as it takes to reach `mass` (at least one); returns how many.
/// Each round halves the part that is still open, so the whole is linear.
fn partition_by_mass(members: &mut [u64], weights: &[f32], mut mass: f64) -> usize {
    let weight = |member: &u64| f64::from(weights[position_of(*member)]);
    if members.is_sorted() {
        let mut running = 0.0;
        let reached = members.iter().position(|member| {
            running += weight(member);
            running >= mass
        });
        return reached.map_or(members.len(), |index| index + 1);
    }
    let (mut low, mut high) = (0, members.len());
    while high - low > 1 {
        let half = (high - low) / 2;
        members[low..high].select_nth_unstable(half);
        let nearer: f64 = members[low..low + half].iter().map(weight).sum();
        if nearer >= mass {
            high = low + half;
        } else {
            mass -= nearer;
            low += half;
        }
    }
    high
}
