//! The passes over the whole vocabulary. They are plain element loops over fixed lanes, compiled for every instruction
//! set, so that the compiler turns them into vector code, and sums always add up in the same order: equal on every
//! platform.

use std::array;

/// Logits are scanned in blocks of this many; each block keeps its maximum and, later, its mass.
pub(super) const BLOCK: usize = 128;
/// Independent accumulators of one reduction: an AVX-512 register, two AVX ones, four SSE ones.
pub(super) const LANES: usize = 16;

/// Levels below this weigh nothing: all tokens of a vocabulary of 2^18 that are 2^40 times less likely than the
/// best one weigh less together than one rounding error of an f32 probability.
pub(super) const LOWEST_LEVEL: f32 = -40.0;

/// Adding it to a small number rounds that number to an integer, which then stands in the low bits.
const ROUND: f32 = 12_582_912.0;

/// Places in the histogram of [`places`]; a power of two.
pub(super) const BUCKETS: usize = 32 * PLACES_PER_OCTAVE;
const PLACES_PER_OCTAVE: usize = 64;

/// Makes functions whose bodies are compiled for every instruction set; what they call must be `#[inline(always)]`.
macro_rules! passes {
    (@result) => { () };
    (@result $result:ty) => { $result };
    ($(
        $(#[$meta:meta])*
        fn $name:ident<$lifetime:lifetime>($($argument:ident: $kind:ty),* $(,)?) $(-> $result:ty)? $body:block
    )*) => {$(
        $(#[$meta])*
        pub(super) fn $name<$lifetime>($($argument: $kind),*) $(-> $result)? {
            struct Loops;
            impl<$lifetime> metal_candle_kernels::simd::Pass<($($kind,)*)> for Loops {
                type Output = passes!(@result $($result)?);
                #[inline(always)]
                fn run(self, ($($argument,)*): ($($kind,)*)) -> Self::Output $body
            }
            metal_candle_kernels::simd::vectorized(Loops, ($($argument,)*))
        }
    )*};
}
pub(super) use passes;

/// Writes the maximum of each block to `maxima`. The position of the first NaN is the error.
pub(super) fn block_maxima(logits: &[f32], maxima: &mut Vec<f32>) -> Result<(), usize> {
    maxima.resize(logits.len().div_ceil(BLOCK), 0.0);
    if find_maxima(logits, maxima) {
        return Err(logits.iter().position(|logit| logit.is_nan()).expect("a block holds a NaN"));
    }
    Ok(())
}

passes! {
    /// Writes the maximum of each block; returns whether there is a NaN.
    fn find_maxima<'a>(logits: &'a [f32], maxima: &'a mut [f32]) -> bool {
        // In bits, a NaN is larger than infinity, whatever the sign.
        let mut largest_bits = [0i32; LANES];
        for (block, maximum) in logits.chunks(BLOCK).zip(maxima) {
            let mut best = [f32::NEG_INFINITY; LANES];
            let (rows, rest) = block.as_chunks::<LANES>();
            for row in rows {
                for lane in 0..LANES {
                    let bits = row[lane].abs().to_bits() as i32;
                    largest_bits[lane] = if bits > largest_bits[lane] { bits } else { largest_bits[lane] };
                    best[lane] = if row[lane] > best[lane] { row[lane] } else { best[lane] };
                }
            }
            for (lane, &logit) in rest.iter().enumerate() {
                let bits = logit.abs().to_bits() as i32;
                largest_bits[lane] = if bits > largest_bits[lane] { bits } else { largest_bits[lane] };
                best[lane] = if logit > best[lane] { logit } else { best[lane] };
            }
            *maximum = fold(best, |left, right| if left > right { left } else { right });
        }
        largest_bits.iter().any(|&bits| bits > f32::INFINITY.to_bits() as i32)
    }

    /// The largest of the block maxima.
    fn largest<'a>(maxima: &'a [f32]) -> f32 {
        maxima.iter().fold(f32::NEG_INFINITY, |best, &maximum| if maximum > best { maximum } else { best })
    }

    /// Turns logits into levels, `(logit − best) · scale`, and writes `2^level` to `weights` and the sum of each
    /// block to `masses`. Levels of blocks without any mass are left undefined.
    fn weigh<'a>(
        logits: &'a mut [f32], weights: &'a mut [f32], masses: &'a mut [f32], maxima: &'a [f32], best: f32, scale: f32,
    ) {
        let blocks = logits.chunks_mut(BLOCK).zip(weights.chunks_mut(BLOCK)).zip(masses).zip(maxima);
        for (((levels, weights), mass), &maximum) in blocks {
            if (maximum - best) * scale < LOWEST_LEVEL {
                weights.fill(0.0);
                *mass = 0.0;
                continue;
            }
            for (level, weight) in levels.iter_mut().zip(&mut *weights) {
                *level = (*level - best) * scale;
                let power = exp2(*level);
                *weight = if *level >= LOWEST_LEVEL { power } else { 0.0 };
            }
            *mass = sum(weights);
        }
    }

    /// Zeroes the weights that are not nearer to `center` than the level at `position`. Of equal distances, those at
    /// lower positions are nearer.
    fn keep_nearer<'a>(levels: &'a [f32], weights: &'a mut [f32], masses: &'a mut [f32], center: f32, position: usize) {
        let limit = distance(levels[position], center);
        let blocks = levels.chunks(BLOCK).zip(weights.chunks_mut(BLOCK)).zip(masses).enumerate();
        for (block, ((levels, weights), mass)) in blocks.filter(|(_, (_, mass))| **mass > 0.0) {
            let split = position.saturating_sub(block * BLOCK).min(levels.len());
            let (lower, higher) = weights.split_at_mut(split);
            *mass = keep_below(&levels[..split], lower, center, limit + 1)
                + keep_below(&levels[split..], higher, center, limit);
        }
    }

    /// The sum of `2^((logit − best) · scale)`, which changes nothing and forgets nothing above f32's smallest number.
    fn total_weight<'a>(logits: &'a [f32], best: f32, scale: f32) -> f64 {
        let mut powers = [0.0f32; BLOCK];
        let mut total = 0.0;
        for block in logits.chunks(BLOCK) {
            for (power, &logit) in powers.iter_mut().zip(block) {
                let level = (logit - best) * scale;
                let level = if level > -125.0 { level } else { -125.0 };
                *power = exp2(level);
            }
            total += f64::from(sum(&powers[..block.len()]));
        }
        total
    }

    /// The sum of level times weight.
    fn weighted_levels<'a>(levels: &'a [f32], weights: &'a [f32], masses: &'a [f32]) -> f64 {
        let mut products = [0.0f32; BLOCK];
        let mut total = 0.0;
        let blocks = levels.chunks(BLOCK).zip(weights.chunks(BLOCK)).zip(masses);
        for ((levels, weights), _) in blocks.filter(|(_, mass)| **mass > 0.0) {
            for ((product, &level), &weight) in products.iter_mut().zip(levels).zip(weights) {
                // The level of a banned token is negative infinity, its weight 0.
                let live = if level >= LOWEST_LEVEL { level } else { 0.0 };
                *product = live * weight;
            }
            total += f64::from(sum(&products[..levels.len()]));
        }
        total
    }

    /// Zeroes the weights outside `floor..=ceiling`. Blocks of less mass than `least` hold none that matters.
    fn keep_between<'a>(weights: &'a mut [f32], masses: &'a mut [f32], floor: f32, ceiling: f32, least: f32) {
        for (weights, mass) in weights.chunks_mut(BLOCK).zip(masses) {
            if *mass > least {
                for weight in &mut *weights {
                    *weight = if *weight >= floor && *weight <= ceiling { *weight } else { 0.0 };
                }
                *mass = sum(weights);
            }
        }
    }

    /// The mass of each block that has any.
    fn sum_blocks<'a>(weights: &'a [f32], masses: &'a mut [f32]) {
        for (weights, mass) in weights.chunks(BLOCK).zip(masses) {
            if *mass > 0.0 {
                *mass = sum(weights);
            }
        }
    }
}

/// The first position that holds `value`, which is the largest of `maxima`.
pub(super) fn first_position(logits: &[f32], maxima: &[f32], value: f32) -> Option<usize> {
    let block = maxima.iter().position(|&maximum| maximum == value)?;
    let start = block * BLOCK;
    logits[start..].iter().position(|&logit| logit == value).map(|offset| start + offset)
}

/// Zeroes the weights whose distance from `center` is not below `limit`; returns the sum of the others.
#[inline(always)]
fn keep_below(levels: &[f32], weights: &mut [f32], center: f32, limit: i32) -> f32 {
    for (weight, &level) in weights.iter_mut().zip(levels) {
        *weight = if distance(level, center) < limit { *weight } else { 0.0 };
    }
    sum(weights)
}

/// How far a level is from `center`, in the bits of an f32, which sort as the distance does.
#[inline(always)]
pub(super) fn distance(level: f32, center: f32) -> i32 {
    (center - level).abs().to_bits() as i32
}

/// The sum of at most one block, in f32 lanes.
#[inline(always)]
pub(super) fn sum(block: &[f32]) -> f32 {
    let mut lanes = [0.0f32; LANES];
    let (rows, rest) = block.as_chunks::<LANES>();
    for row in rows {
        lanes = array::from_fn(|lane| lanes[lane] + row[lane]);
    }
    for (lane, &value) in lanes.iter_mut().zip(rest) {
        *lane += value;
    }
    fold(lanes, |left, right| left + right)
}

/// The histogram place of each level of a block: its distance from `center`, [`PLACES_PER_OCTAVE`] places for each
/// doubling, so that a narrow distribution is told apart as finely as a wide one.
#[inline(always)]
pub(super) fn places(levels: &[f32], center: f32, places: &mut [i32; BLOCK]) {
    const NEAREST: f32 = 1.0 / (1 << 26) as f32;
    const FARTHEST: f32 = 63.0;
    const SHIFT: i32 = 23 - PLACES_PER_OCTAVE.ilog2() as i32;
    const FIRST: i32 = (NEAREST.to_bits() >> SHIFT) as i32;
    for (place, &level) in places.iter_mut().zip(levels) {
        let distance = (center - level).abs();
        let distance = if distance < FARTHEST { distance } else { FARTHEST };
        let distance = if distance > NEAREST { distance } else { NEAREST };
        *place = (distance.to_bits() as i32 >> SHIFT) - FIRST;
    }
}

/// Zeroes the weights of one row whose place lies beyond `border`; returns whether a place is the border itself.
#[inline(always)]
pub(super) fn drop_beyond(weights: &mut [f32], places: &[i32], border: i32) -> bool {
    for (weight, &place) in weights.iter_mut().zip(places) {
        *weight = if place <= border { *weight } else { 0.0 };
    }
    places.iter().fold(false, |seen, &place| seen | (place == border))
}

/// `2^level` for levels in `-125..=0`, within 2e-7 of its value. Elsewhere it returns some number.
/// The polynomial is a minimax fit of `2^f` on `-0.5..=0.5` that is exact at 0; only additions and multiplications,
/// so that the result has the same bits everywhere (the platform's `exp` has not).
#[inline(always)]
#[allow(clippy::approx_constant, clippy::excessive_precision)]
fn exp2(level: f32) -> f32 {
    let shifted = level + ROUND;
    let fraction = level - (shifted - ROUND);
    let mut power = 0.001_326_471_5;
    power = power * fraction + 0.009_671_513;
    power = power * fraction + 0.055_507_34;
    power = power * fraction + 0.240_222_42;
    power = power * fraction + 0.693_147;
    power = power * fraction + 1.0;
    f32::from_bits(power.to_bits().wrapping_add(shifted.to_bits() << 23))
}

/// Combines the lanes pairwise, always in the same order.
#[inline(always)]
fn fold(mut lanes: [f32; LANES], combine: impl Fn(f32, f32) -> f32) -> f32 {
    let mut width = LANES / 2;
    while width > 0 {
        for lane in 0..width {
            lanes[lane] = combine(lanes[lane], lanes[lane + width]);
        }
        width /= 2;
    }
    lanes[0]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp2_is_right_to_the_last_bits_and_exact_at_integers() {
        for step in 0..=1_000_000 {
            let level = -125.0 * step as f32 / 1_000_000.0;
            let expected = f64::from(level).exp2();
            let error = (f64::from(exp2(level)) / expected - 1.0).abs();
            assert!(error < 2e-7, "2^{level}: relative error {error}");
        }
        for integer in 0..=125 {
            assert_eq!(exp2(-(integer as f32)), (-f64::from(integer)).exp2() as f32);
        }
    }

    #[test]
    fn maxima_cover_partial_blocks_and_find_nan_anywhere() {
        for length in [1, 15, 16, 17, 127, 128, 129, 300] {
            let mut logits: Vec<f32> = (0..length).map(|index| (index * 37 % 101) as f32).collect();
            let mut maxima = Vec::new();
            assert_eq!(block_maxima(&logits, &mut maxima), Ok(()));
            let expected: Vec<f32> =
                logits.chunks(BLOCK).map(|block| block.iter().copied().fold(f32::MIN, f32::max)).collect();
            assert_eq!(maxima, expected);
            for position in 0..length {
                let kept = logits[position];
                logits[position] = f32::NAN;
                assert_eq!(block_maxima(&logits, &mut maxima), Err(position));
                logits[position] = kept;
            }
        }
    }

    #[test]
    fn sums_take_every_element_once() {
        for length in 0..=BLOCK {
            let values: Vec<f32> = (1..=length).map(|value| value as f32).collect();
            assert_eq!(sum(&values), (length * (length + 1) / 2) as f32);
        }
    }
}
