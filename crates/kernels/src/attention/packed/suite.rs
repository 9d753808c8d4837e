//! On every device, against the definition.

use metal_candle_testkit::tolerance::Gate;

use super::*;
use crate::{
    gpu::emulator::Mode,
    testing::{
        random,
        suite::{Case, Gradients, Rig, check_where, one_mode_per_type},
    },
};

const GATES: [Gate; 2] = [Gate::Attention, Gate::AttentionBackward];

const CAUSAL: Kind = Kind { causal: true, window: None, soft_cap: None };
const FULL: Kind = Kind { causal: false, ..CAUSAL };

/// Which rows see which, and how scores are bent.
#[derive(Debug, Clone, Copy)]
struct Kind {
    causal: bool,
    window: Option<usize>,
    soft_cap: Option<f32>,
}

/// Lengths of the sequences, heads, key/value heads, head size.
#[derive(Debug, Clone, Copy)]
struct Shape<'a>(&'a [u32], usize, usize, usize);

impl Shape<'_> {
    /// Keys are large, so that weights are far from equal.
    fn inputs(self) -> Vec<Tensor> {
        let Shape(lengths, heads, groups, head_dim) = self;
        let rows = lengths.iter().sum::<u32>() as usize;
        let keys = (random(2, (rows, groups, head_dim), DType::F64) * 4.).unwrap();
        vec![
            random(1, (rows, heads, head_dim), DType::F64),
            keys,
            random(3, (rows, groups, head_dim), DType::F64),
        ]
    }

    fn packing(self, kind: Kind) -> PackedAttention {
        let Shape(lengths, _, _, head_dim) = self;
        let mut starts = vec![0];
        starts.extend(lengths.iter().scan(0, |end, length| {
            *end += length;
            Some(*end)
        }));
        let scale = 1. / (head_dim as f32).sqrt();
        let params = AttentionParams { scale, soft_cap: kind.soft_cap, window: kind.window };
        PackedAttention { starts, params, causal: kind.causal }
    }
}

/// Output and gradients through candle's graph; output and lse without it.
fn check_all(shape: Shape<'_>, kind: Kind) {
    check_all_where(shape, kind, one_mode_per_type);
}

fn check_all_where(shape: Shape<'_>, kind: Kind, is_wanted: impl Fn(&Rig, DType) -> bool) {
    let packing = shape.packing(kind);
    let case = Case {
        op: "packed_attention",
        name: format!("{shape:?} {kind:?}"),
        gates: GATES,
        inputs: shape.inputs(),
        run: &|inputs| Ok(vec![packed_attention(&inputs[0], &inputs[1], &inputs[2], &packing)?]),
        gradients: Gradients::Recorded,
        definition: &|inputs| {
            let [out, _lse] = reference::packed_attention(&inputs[0], &inputs[1], &inputs[2], &packing)?;
            Ok(vec![out])
        },
    };
    check_where(&case, &is_wanted);
    check_forward_where(shape, kind, is_wanted);
}

fn check_forward_where(shape: Shape<'_>, kind: Kind, is_wanted: impl Fn(&Rig, DType) -> bool) {
    let packing = shape.packing(kind);
    let case = Case {
        op: "packed_attention_forward",
        name: format!("{shape:?} {kind:?}"),
        gates: GATES,
        inputs: shape.inputs(),
        run: &|inputs| {
            let (out, lse) = packed_attention_forward(&inputs[0], &inputs[1], &inputs[2], &packing)?;
            Ok(vec![out, lse])
        },
        gradients: Gradients::None,
        definition: &|inputs| {
            Ok(reference::packed_attention(&inputs[0], &inputs[1], &inputs[2], &packing)?.to_vec())
        },
    };
    check_where(&case, is_wanted);
}

#[test]
fn lengths_match_the_definition() {
    for lengths in [&[2][..], &[7], &[63], &[64], &[65], &[129], &[1, 1, 2], &[1, 37, 1, 70, 3]] {
        for kind in [CAUSAL, FULL] {
            check_all(Shape(lengths, 4, 2, 16), kind);
        }
    }
}

#[test]
fn heads_and_head_sizes_match_the_definition() {
    for head_dim in [1, 7, 8, 20, 64, 80, 128, 256] {
        for (heads, groups) in [(2, 2), (2, 1), (7, 1)] {
            check_all(Shape(&[21, 1, 33], heads, groups, head_dim), CAUSAL);
        }
    }
    check_all(Shape(&[50], 14, 2, 64), FULL);
}

#[test]
fn windows_and_caps_match_the_definition() {
    for window in [None, Some(2), Some(7), Some(40), Some(1000)] {
        for soft_cap in [None, Some(1.5), Some(50.)] {
            check_all(Shape(&[90, 1, 17], 6, 2, 20), Kind { window, soft_cap, ..CAUSAL });
        }
    }
    check_all(Shape(&[90, 1, 17], 6, 2, 20), Kind { soft_cap: Some(1.5), ..FULL });
}

/// Several ranges of keys per sequence, so that sums of the queries' gradients are joined.
#[test]
fn long_sequences_match_the_definition() {
    check_all(Shape(&[300, 10, 140], 2, 1, 8), CAUSAL);
    check_all(Shape(&[300, 10, 140], 2, 1, 8), FULL);
    check_all(Shape(&[400], 3, 1, 8), Kind { window: Some(150), ..CAUSAL });
}

/// Packed, so that the emulator starts few kernels; in one of its modes. Up to 100 with gradients: blocks of rows and tiles of
/// keys are shorter than that.
#[test]
fn every_length_up_to_300_matches_the_definition() {
    let is_wanted = |rig: &Rig, dtype| match rig {
        Rig::Emulated(mode) => *mode == Mode::ALL[1] && dtype == DType::F32,
        _ => true,
    };
    let lengths: Vec<u32> = (1..=300).collect();
    check_all_where(Shape(&lengths[..100], 1, 1, 8), CAUSAL, is_wanted);
    check_forward_where(Shape(&lengths[100..], 1, 1, 8), CAUSAL, is_wanted);
}
