//! Attention against the cache, on every device, against the definition.

use candle_core::{DType, Device};
use metal_candle_testkit::tolerance::Gate;

use super::*;
use crate::testing::{
    message, random,
    suite::{Case, Gradients, Rig, check_where, each_rig, one_mode_per_type},
};

const CHUNK: usize = 16;

/// Rows, first and last position in the cache.
#[derive(Debug, Clone, Copy)]
struct Sequence(usize, usize, usize);

/// Heads, key/value heads, head size.
#[derive(Debug, Clone, Copy)]
struct Heads(usize, usize, usize);

const PLAIN: AttentionParams = AttentionParams { scale: 0.3, soft_cap: None, window: None };

/// The keys or values of a sequence, cut into chunks; what lies beyond the end is not a number.
fn chunks(tensor: &Tensor, first: usize, count: usize, length: usize) -> Result<Vec<Tensor>> {
    let (_, groups, head_dim) = tensor.dims3()?;
    let chunk = |start: usize| {
        let filled = tensor.narrow(0, first + start, length.min(count - start))?;
        let beyond = (length - filled.dims()[0], groups, head_dim);
        let garbage = Tensor::full(f32::NAN, beyond, &Device::Cpu)?.to_dtype(tensor.dtype())?;
        Tensor::cat(&[&filled, &garbage.to_device(tensor.device())?], 0)
    };
    (0..count).step_by(length).map(chunk).collect()
}

/// Runs `op` on queries, keys and values, of which each sequence has its part.
fn with_segments<T>(
    inputs: &[Tensor],
    sequences: &[Sequence],
    chunk_length: usize,
    op: impl FnOnce(&[Segment<'_>]) -> Result<T>,
) -> Result<T> {
    let (mut first, mut caches) = (0, Vec::new());
    for Sequence(_, start, end) in sequences {
        let [keys, values] = [1, 2].map(|index| chunks(&inputs[index], first, end - start, chunk_length));
        let chunk = |(keys, values)| KvChunk { keys, values };
        caches.push(keys?.into_iter().zip(values?).map(chunk).collect::<Vec<_>>());
        first += end - start;
    }
    let (mut row, mut segments) = (0, Vec::new());
    for (&Sequence(count, start, end), chunks) in sequences.iter().zip(&caches) {
        segments.push(Segment { rows: row..row + count, start, end, chunks: chunks.iter().collect() });
        row += count;
    }
    op(&segments)
}

fn check_all(sequences: &[Sequence], Heads(heads, groups, head_dim): Heads, params: AttentionParams) {
    let rows = sequences.iter().map(|Sequence(count, ..)| count).sum::<usize>();
    let cached = sequences.iter().map(|Sequence(_, start, end)| end - start).sum::<usize>();
    // Keys are large, so that weights are far from equal.
    let keys = (random(2, (cached, groups, head_dim), DType::F64) * 4.).unwrap();
    let case = Case {
        op: "attention",
        name: format!("{sequences:?} {heads} {groups} {head_dim} {params:?}"),
        gates: [Gate::Attention; 2],
        inputs: vec![
            random(1, (rows, heads, head_dim), DType::F64),
            keys,
            random(3, (cached, groups, head_dim), DType::F64),
        ],
        run: &|inputs| {
            let run = |segments: &[Segment<'_>]| attention(&inputs[0], segments, params);
            Ok(vec![with_segments(inputs, sequences, CHUNK, run)?])
        },
        gradients: Gradients::None,
        definition: &|inputs| {
            let run = |segments: &[Segment<'_>]| reference::attention(&inputs[0], segments, params);
            Ok(vec![with_segments(inputs, sequences, CHUNK, run)?])
        },
    };
    // On the CPU queries are f32.
    check_where(&case, |rig, dtype| match rig {
        Rig::Cpu(_) => dtype == DType::F32,
        _ => one_mode_per_type(rig, dtype),
    });
}

/// Prefills, pieces of prefills and single rows side by side; more chunks than a launch takes.
#[test]
fn sequences_of_all_kinds_match_the_definition() {
    check_all(&[Sequence(1, 0, 1)], Heads(4, 2, 16), PLAIN);
    let mixed = [Sequence(40, 0, 40), Sequence(1, 0, 16), Sequence(11, 0, 77), Sequence(1, 0, 230)];
    check_all(&mixed, Heads(4, 2, 16), PLAIN);
    check_all(&[Sequence(1, 0, 300); 2], Heads(14, 2, 64), PLAIN);
    check_all(&[Sequence(150, 0, 200)], Heads(6, 2, 8), PLAIN);
}

#[test]
fn heads_and_head_sizes_match_the_definition() {
    for head_dim in [8, 14, 64, 80, 128, 256] {
        for (heads, groups) in [(2, 2), (7, 1)] {
            check_all(&[Sequence(9, 0, 33), Sequence(1, 0, 20)], Heads(heads, groups, head_dim), PLAIN);
        }
    }
}

/// Also with positions that the cache has let go of.
#[test]
fn windows_and_caps_match_the_definition() {
    let sequences = [Sequence(30, 0, 50), Sequence(1, 32, 130), Sequence(5, 48, 60)];
    for window in [None, Some(1), Some(10), Some(40)] {
        for soft_cap in [None, Some(1.5)] {
            check_all(&sequences, Heads(6, 2, 16), AttentionParams { window, soft_cap, ..PLAIN });
        }
    }
}

#[test]
fn a_gpu_names_what_it_cannot_do() {
    let inputs = [(20, 4, 264), (20, 2, 264), (20, 2, 264)].map(|shape| random(1, shape, DType::F32));
    let sequences = [Sequence(20, 0, 20)];
    each_rig("attention", "errors", DType::F32, |device| {
        if !runs_kernels(device) {
            return;
        }
        let inputs = inputs.each_ref().map(|input| input.to_device(device).unwrap());
        let call = |inputs: &[Tensor], params| {
            let run = |segments: &[Segment<'_>]| attention(&inputs[0], segments, params);
            message(with_segments(inputs, &sequences, CHUNK, run))
        };
        let expected =
            "attention: on a GPU the head size is at most 256, not 264; use the CPU for larger ones";
        assert_eq!(call(&inputs, PLAIN), expected);
        let small = inputs.each_ref().map(|input| input.narrow(2, 0, 16).unwrap().contiguous().unwrap());
        let expected = "attention: `scale` is -1, expected a positive number on a GPU";
        assert_eq!(call(&small, AttentionParams { scale: -1., ..PLAIN }), expected);
        let mixed = [small[0].clone(), small[1].to_dtype(DType::F16).unwrap(), small[2].clone()];
        let expected = "attention: a chunk has dtype F16, expected F32 like `queries`";
        assert_eq!(call(&mixed, PLAIN), expected);
    });
}
