//! Plain element loops, compiled for every instruction set.

use super::{Simd, dispatch};

/// A pass over slices, for [`vectorized`].
pub trait Pass<A> {
    /// What it returns.
    type Output;

    /// The loops. This and all that it calls in them must be `#[inline(always)]`: only code that is inlined is compiled
    /// for each instruction set. (A closure could not promise it.)
    fn run(self, arguments: A) -> Self::Output;
}

dispatch! {
    /// Runs loops without vectors of their own, compiled for the current [`level`](super::level()), so that the compiler
    /// turns them into its vector code. Results do not depend on the level: the order of additions stays.
    pub fn vectorized<A: Sized, P: Pass<A>>(pass: P, arguments: A) -> P::Output = run;
}

#[inline(always)]
fn run<S: Simd, A, P: Pass<A>>(_: S, pass: P, arguments: A) -> P::Output {
    pass.run(arguments)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simd::{available, with_level};

    struct ScaledSum;

    impl Pass<(&mut [f32], f32)> for ScaledSum {
        type Output = f32;

        #[inline(always)]
        fn run(self, (values, factor): (&mut [f32], f32)) -> f32 {
            let mut lanes = [0f32; 16];
            for row in values.as_chunks_mut::<16>().0 {
                for (lane, value) in lanes.iter_mut().zip(row) {
                    *value *= factor;
                    *lane += *value;
                }
            }
            lanes.iter().sum()
        }
    }

    #[test]
    fn a_pass_gives_the_same_bits_at_every_level() {
        let values: Vec<f32> = (0..160).map(|index| 1. / (index as f32 + 3.)).collect();
        let results: Vec<(f32, Vec<f32>)> = available()
            .map(|level| {
                let mut values = values.clone();
                let sum = with_level(level, || vectorized(ScaledSum, (&mut values[..], 0.3)));
                (sum, values)
            })
            .collect();
        assert!(results[0].0 > 0. && results[0].1[0] == values[0] * 0.3);
        assert!(results.iter().all(|result| *result == results[0]));
    }
}
