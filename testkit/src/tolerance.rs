//! The one table of tolerances, and the comparison that uses it.
//!
//! A tolerance is relative to the largest expected value of the whole tensor: an element that is small by
//! cancellation has no better absolute precision than its neighbours.

use std::fmt;

/// What is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gate {
    /// A model's logits against transformers.
    Logits,
    /// The same model run in another way: cached, in pieces, in a batch, forked.
    SameModel,
    /// A model with an adapter in its weights against the two apart.
    Merged,
    /// A mean loss against transformers.
    Loss,
    /// Inverse frequencies and their factor against transformers.
    RopeTable,
    /// Cross-entropy of a language model's head.
    CrossEntropy,
    /// Its gradients.
    CrossEntropyBackward,
    /// A sum in place.
    Accumulate,
    /// The same in the type of what is added.
    AccumulateAlike,
    /// A change of type, and its gradient.
    Cast,
    /// Dropout, and its gradient.
    Dropout,
    /// Rows of an embedding, and the gradient of its table.
    Embedding,
    /// A matrix product.
    Linear,
    /// Gradients of a matrix product.
    LinearBackward,
    /// Gradients of an adapter with magnitudes.
    DoraBackward,
    /// A low-rank adapter.
    Lora,
    /// Gradients of a low-rank adapter.
    LoraBackward,
    /// A normalisation.
    Norm,
    /// Gradients of a normalisation.
    NormBackward,
    /// A rotary embedding.
    Rope,
    /// Which elements are the largest.
    Selection,
    /// Attention.
    Attention,
    /// Gradients of attention.
    AttentionBackward,
    /// A gated feed-forward block.
    GatedMlp,
    /// A gated activation.
    Gated,
    /// Gradients of a gated activation.
    GatedBackward,
    /// Optimizer steps and norms of gradients.
    Optimizer,
    /// Gradients of a whole model against PyTorch and PEFT.
    ModelBackward,
    /// Parameters after ten optimizer steps, against PyTorch and PEFT.
    TenSteps,
    /// Losses of a training run of 200 steps, against PyTorch and PEFT.
    Curve,
    /// A softmax.
    Softmax,
    /// Gradients of a softmax.
    SoftmaxBackward,
}

/// What the values, or the weights of a model, are stored in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Precision {
    /// 24 significant bits: a rounding error of 6e-8.
    F32,
    /// 11 significant bits: a rounding error of 5e-4.
    F16,
    /// 8 significant bits: a rounding error of 4e-3.
    Bf16,
}

/// The largest error that is allowed, as a part of the largest expected value.
#[derive(Debug, Clone, Copy, PartialEq, PartialOrd)]
pub struct Tolerance(pub f32);

/// Columns: f32, f16, bf16.
const TABLE: &[(Gate, [f32; 3])] = &[
    // Sums of a few hundred products in another order, through a few layers. Half precision: the weights are
    // rounded alike on both sides, but activations may be rounded on one side only.
    (Gate::Logits, [2e-5, 5e-3, 2e-2]),
    // Only the order of sums differs, as above; with half precision also where activations are rounded.
    (Gate::SameModel, [2e-5, 5e-3, 2e-2]),
    // As above in f32; else every weight is rounded, which moves each product by as much as activations do.
    (Gate::Merged, [2e-5, 1e-2, 4e-2]),
    // A mean over tokens: errors of logits cancel, the logarithm adds a few roundings.
    (Gate::Loss, [2e-5, 1e-3, 5e-3]),
    // One power and one division; libraries differ in the last bits of pow. Tables are always f32.
    (Gate::RopeTable, [1e-6, 1e-6, 1e-6]),
    // A matrix product, then a sum of exponentials. GPUs hold logits in the storage type, with errors of half a step.
    (Gate::CrossEntropy, [1e-5, 2e-3, 1.6e-2]),
    // As above, and the logits' gradients are rounded to the storage type before the second product.
    (Gate::CrossEntropyBackward, [2e-5, 4e-3, 3e-2]),
    // One sum in f32 of what every type holds exactly.
    (Gate::Accumulate, [1e-7, 1e-7, 1e-7]),
    // One rounding to the type.
    (Gate::AccumulateAlike, [1e-7, 1e-3, 8e-3]),
    // One product, rounded to the narrowest type of the test whatever the type of the input.
    (Gate::Cast, [8e-3, 8e-3, 8e-3]),
    // One product, rounded once.
    (Gate::Dropout, [2e-7, 1e-3, 8e-3]),
    // One product; a row's gradient is a sum over its uses, in f32.
    (Gate::Embedding, [1e-6, 1e-3, 8e-3]),
    // Up to a few thousand terms in another order; the result is rounded once to the storage type.
    (Gate::Linear, [1e-5, 1e-3, 8e-3]),
    // As above; the sum may have to be as long as all rows.
    (Gate::LinearBackward, [1e-5, 1e-3, 8e-3]),
    // As those of a low-rank adapter; what magnitudes multiply is rounded too.
    (Gate::DoraBackward, [1e-5, 4e-3, 3.2e-2]),
    // Two products with a rounding between them.
    (Gate::Lora, [1e-5, 2e-3, 1.6e-2]),
    // Two products with a rounding between them, one of them of a sum over all rows.
    (Gate::LoraBackward, [1e-5, 2e-3, 1.6e-2]),
    // One sum, one square root, two products; then one rounding.
    (Gate::Norm, [2e-6, 1e-3, 8e-3]),
    // Two sums over a row that partly cancel; a weight's gradient also sums over all rows.
    (Gate::NormBackward, [1e-5, 2e-3, 1e-2]),
    // Two products and a sum; sine and cosine of large angles differ in the last bits.
    (Gate::Rope, [2e-6, 1e-3, 8e-3]),
    // The elements themselves and their places: nothing is rounded, and no two places are so close.
    (Gate::Selection, [1e-9, 1e-9, 1e-9]),
    // Two products, an approximated exponential, one division.
    (Gate::Attention, [1e-5, 2e-3, 1e-2]),
    // Three products on top of the weights, with a difference that cancels; sums over rows and shared heads.
    (Gate::AttentionBackward, [2e-5, 4e-3, 2e-2]),
    // Two products with a rounding between them, and an approximated activation.
    (Gate::GatedMlp, [2e-5, 2e-3, 1.6e-2]),
    // An approximated exponential, a division and two products, each rounded once.
    (Gate::Gated, [2e-6, 1e-3, 8e-3]),
    // As above; the slope is a difference that cancels near its zero.
    (Gate::GatedBackward, [4e-6, 1e-3, 8e-3]),
    // A few steps of a few roundings each; parameters are always f32.
    (Gate::Optimizer, [5e-6, 5e-6, 5e-6]),
    // Sums through all layers, forward and back, against f64; what PyTorch itself reaches in f32 is 2.5e-5.
    (Gate::ModelBackward, [1e-4, 1e-2, 5e-2]),
    // The optimizer divides by the size of the gradient: where that is tiny, its relative error counts.
    (Gate::TenSteps, [1e-5, 1e-5, 1e-5]),
    // Rounding errors of 200 steps grow into each other; in f32, PyTorch itself is 2.4e-6 from its f64.
    (Gate::Curve, [1e-4, 1e-2, 1e-2]),
    // An approximated exponential of a rounded difference, a long sum, one division.
    (Gate::Softmax, [3e-6, 1e-3, 8e-3]),
    // From the rounded result; a difference that cancels.
    (Gate::SoftmaxBackward, [1e-5, 3e-3, 2e-2]),
];

/// The tolerance of this gate for values of this precision.
pub fn tolerance(gate: Gate, precision: Precision) -> Tolerance {
    let (_, columns) =
        TABLE.iter().find(|(row, _)| *row == gate).expect("the table has a row for every gate");
    Tolerance(match precision {
        Precision::F32 => columns[0],
        Precision::F16 => columns[1],
        Precision::Bf16 => columns[2],
    })
}

/// How far two tensors are apart, at the place where they are furthest apart.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Difference {
    /// Where.
    pub index: usize,
    /// What is there.
    pub found: f32,
    /// What should be there.
    pub expected: f32,
    /// The distance; infinite if one of the two is not a number, or they are not the same infinity.
    pub absolute: f32,
    /// The distance relative to the largest expected value.
    pub relative: f32,
}

/// The largest difference. Panics unless both have the same number of values, and at least one.
pub fn largest_difference(found: &[f32], expected: &[f32]) -> Difference {
    assert_eq!(found.len(), expected.len(), "the numbers of values differ");
    assert!(!expected.is_empty(), "nothing to compare");
    let distances = found.iter().zip(expected).map(|(&found, &expected)| distance(found, expected));
    let (index, absolute) =
        distances.enumerate().max_by(|left, right| left.1.total_cmp(&right.1)).expect("there is a value");
    // Infinities are not a scale: they have to be equal, and distance() sees to that.
    let finite = expected.iter().copied().filter(|value| value.is_finite());
    let largest = finite.fold(0.0, |largest: f32, value| largest.max(value.abs()));
    let relative = if absolute == 0.0 { 0.0 } else { absolute / largest };
    Difference { index, found: found[index], expected: expected[index], absolute, relative }
}

/// Panics unless the values are equal within the tolerance; `what` starts the message.
#[track_caller]
pub fn assert_close(found: &[f32], expected: &[f32], tolerance: Tolerance, what: impl fmt::Display) {
    let difference = largest_difference(found, expected);
    assert!(difference.relative <= tolerance.0, "{what}: {difference}, allowed {:e}", tolerance.0);
}

impl fmt::Display for Difference {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { index, found, expected, absolute, relative } = self;
        write!(
            formatter,
            "found {found:e}, expected {expected:e} at index {index}: error {absolute:e}, relative {relative:e}"
        )
    }
}

fn distance(found: f32, expected: f32) -> f32 {
    let distance = (found - expected).abs();
    if found == expected {
        0.0
    } else if distance.is_nan() {
        f32::INFINITY
    } else {
        distance
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_gate_has_a_row_that_loosens_with_fewer_bits() {
        for &(gate, [single, half, brain]) in TABLE {
            assert_eq!(tolerance(gate, Precision::F32), Tolerance(single));
            assert_eq!(tolerance(gate, Precision::F16), Tolerance(half));
            assert_eq!(tolerance(gate, Precision::Bf16), Tolerance(brain));
            assert!(single > 0.0 && single <= half && half <= brain, "{gate:?}");
        }
        for (gate, _) in TABLE {
            assert_eq!(TABLE.iter().filter(|(row, _)| row == gate).count(), 1, "{gate:?}");
        }
    }

    #[test]
    fn the_largest_difference_is_relative_to_the_largest_value() {
        let difference = largest_difference(&[1.0, 2.5, -8.0], &[1.0, 2.0, -8.0]);
        let expected = Difference { index: 1, found: 2.5, expected: 2.0, absolute: 0.5, relative: 0.0625 };
        assert_eq!(difference, expected);
        assert_close(&[1.0, 2.5, -8.0], &[1.0, 2.0, -8.0], Tolerance(0.0625), "at the limit");
    }

    #[test]
    fn equal_infinities_and_zeros_are_close() {
        let values = [f32::NEG_INFINITY, 0.0, -0.0, 1.0];
        assert_close(&values, &values, Tolerance(0.0), "itself");
        assert_close(&[0.0, 0.0], &[0.0, 0.0], Tolerance(0.0), "zeros");
    }

    #[test]
    #[should_panic(
        expected = "norm: found 1.5e0, expected 1e0 at index 2: error 5e-1, relative 2.5e-1, allowed 1e-1"
    )]
    fn a_failure_names_the_place_and_both_values() {
        assert_close(&[0.0, 2.0, 1.5], &[0.0, 2.0, 1.0], Tolerance(0.1), "norm");
    }

    #[test]
    fn what_is_not_a_number_is_never_close() {
        for (found, expected) in [
            (f32::NAN, 1.0),
            (1.0, f32::NAN),
            (f32::NAN, f32::NAN),
            (f32::INFINITY, 1.0),
            (1.0, f32::INFINITY),
            (f32::INFINITY, f32::NEG_INFINITY),
        ] {
            let difference = largest_difference(&[2.0, found], &[2.0, expected]);
            assert_eq!((difference.index, difference.relative), (1, f32::INFINITY), "{found} {expected}");
        }
        assert_eq!(largest_difference(&[1e-30], &[0.0]).relative, f32::INFINITY);
    }

    #[test]
    #[should_panic(expected = "the numbers of values differ")]
    fn a_missing_value_is_a_failure() {
        assert_close(&[1.0], &[1.0, 2.0], Tolerance(1.0), "short");
    }
}
