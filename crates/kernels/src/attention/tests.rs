#![allow(clippy::unwrap_used)]

use candle_core::{DType, Device};

use super::*;
use crate::{
    pool,
    simd::{available, with_level},
    testing::{assert_close, bits, message, random, wide},
};

const PLAIN: AttentionParams = AttentionParams { scale: 0.3, soft_cap: None, window: None };

/// Heads, key/value heads, head size.
#[derive(Debug, Clone, Copy)]
struct Heads(usize, usize, usize);

/// One sequence: all its keys and values, of which the positions before `start` were dropped.
struct Sequence {
    /// `[end, G, D]`
    keys: Tensor,
    values: Tensor,
    count: usize,
    start: usize,
    end: usize,
    chunks: Vec<KvChunk>,
}

impl Sequence {
    fn new(seed: u64, Heads(_, groups, head_dim): Heads, count: usize, start: usize, end: usize) -> Self {
        let keys = (random(seed, (end, groups, head_dim), DType::F32) * 4.).unwrap();
        let values = random(seed + 1, (end, groups, head_dim), DType::F32);
        Self { keys, values, count, start, end, chunks: Vec::new() }
    }

    /// Cuts the cache into chunks; what lies beyond the end is not a number.
    fn chunked(mut self, length: usize) -> Self {
        let cut = |tensor: &Tensor, first: usize| {
            let count = length.min(self.end - first);
            let (_, groups, head_dim) = tensor.dims3().unwrap();
            let filled = tensor.narrow(0, first, count).unwrap();
            let garbage = Tensor::full(f32::NAN, (length - count, groups, head_dim), &Device::Cpu).unwrap();
            Tensor::cat(&[&filled, &garbage], 0).unwrap()
        };
        let chunk = |first| KvChunk { keys: cut(&self.keys, first), values: cut(&self.values, first) };
        self.chunks = (self.start..self.end).step_by(length).map(chunk).collect();
        self
    }

    fn segment(&self, first_row: usize) -> Segment<'_> {
        let rows = first_row..first_row + self.count;
        Segment { rows, start: self.start, end: self.end, chunks: self.chunks.iter().collect() }
    }
}

fn segments(sequences: &[Sequence]) -> Vec<Segment<'_>> {
    let mut next_row = 0;
    let mut segments = Vec::new();
    for sequence in sequences {
        segments.push(sequence.segment(next_row));
        next_row += sequence.count;
    }
    segments
}

/// The definition in f64.
fn expected(queries: &Tensor, sequences: &[Sequence], params: AttentionParams) -> Vec<f64> {
    let (_, heads, head_dim) = queries.dims3().unwrap();
    let all_queries = wide(queries);
    let mut output = Vec::with_capacity(all_queries.len());
    let mut rows = all_queries.chunks(head_dim);
    for sequence in sequences {
        let groups = sequence.keys.dim(1).unwrap();
        let (keys, values) = (wide(&sequence.keys), wide(&sequence.values));
        for token in 0..sequence.count {
            let position = sequence.end - sequence.count + token;
            let first = params.window.map_or(0, |window| (position + 1).saturating_sub(window));
            for head in 0..heads {
                let query = rows.next().unwrap();
                let at = |key: usize| (key * groups + head * groups / heads) * head_dim;
                let seen: Vec<usize> = (first.max(sequence.start)..=position).collect();
                let scores: Vec<f64> =
                    seen.iter().map(|key| score(query, &keys[at(*key)..], params)).collect();
                let largest = scores.iter().copied().fold(f64::MIN, f64::max);
                let weights: Vec<f64> = scores.iter().map(|score| (score - largest).exp()).collect();
                let total: f64 = weights.iter().sum();
                for element in 0..head_dim {
                    let pairs = weights.iter().zip(&seen);
                    let sum: f64 = pairs.map(|(weight, key)| weight * values[at(*key) + element]).sum();
                    output.push(sum / total);
                }
            }
        }
    }
    output
}

fn score(query: &[f64], key: &[f64], params: AttentionParams) -> f64 {
    let dot: f64 = query.iter().zip(key).map(|(query, key)| query * key).sum();
    let score = dot * f64::from(params.scale);
    params.soft_cap.map_or(score, |cap| f64::from(cap) * (score / f64::from(cap)).tanh())
}

fn queries_for(sequences: &[Sequence], Heads(heads, _, head_dim): Heads) -> Tensor {
    let rows: usize = sequences.iter().map(|sequence| sequence.count).sum();
    random(99, (rows, heads, head_dim), DType::F32)
}

#[track_caller]
fn check(heads: Heads, sequences: &[Sequence], params: AttentionParams, context: &str) {
    let queries = queries_for(sequences, heads);
    let found = attention(&queries, &segments(sequences), params).unwrap();
    assert_eq!(found.dims(), queries.dims());
    assert_close(&found, &expected(&queries, sequences, params), 1e-5, context);
}

#[test]
fn every_length_matches_the_definition_at_every_level() {
    let lengths = (1..=70).chain(127..=131).chain([300]);
    let heads = Heads(14, 2, 64);
    for level in available() {
        with_level(level, || {
            for length in lengths.clone() {
                let context = format!("{level}, prefill {length}");
                check(heads, &[Sequence::new(1, heads, length, 0, length).chunked(16)], PLAIN, &context);
                let context = format!("{level}, decode at {length}");
                check(heads, &[Sequence::new(1, heads, 1, 0, length).chunked(16)], PLAIN, &context);
            }
        });
    }
}

#[test]
fn head_sizes_and_groups_match_the_definition() {
    for level in available() {
        with_level(level, || {
            for head_dim in [2, 20, 36, 64, 80, 96, 128, 256, 512] {
                for (heads, groups) in [(1, 1), (6, 6), (6, 1), (6, 3), (14, 2)] {
                    let heads = Heads(heads, groups, head_dim);
                    let sequences = [
                        Sequence::new(1, heads, 1, 0, 40).chunked(16),
                        Sequence::new(3, heads, 11, 0, 23).chunked(16),
                    ];
                    check(heads, &sequences, PLAIN, &format!("{level} {heads:?}"));
                }
            }
        });
    }
}

#[test]
fn windows_caps_and_dropped_chunks_match_the_definition() {
    let heads = Heads(6, 2, 64);
    for level in available() {
        with_level(level, || {
            for chunk in [5, 16, 128] {
                for window in [None, Some(1), Some(7), Some(100), Some(1000)] {
                    for soft_cap in [None, Some(2.), Some(50.)] {
                        let params = AttentionParams { scale: 0.3, soft_cap, window };
                        let sequences = [
                            Sequence::new(1, heads, 30, 0, 30).chunked(chunk),
                            Sequence::new(3, heads, 1, 20, 211).chunked(chunk),
                            Sequence::new(5, heads, 40, 10, 150).chunked(chunk),
                            Sequence::new(7, heads, 2, 3, 5).chunked(chunk),
                        ];
                        check(heads, &sequences, params, &format!("{level}, chunks of {chunk}, {params:?}"));
                    }
                }
            }
        });
    }
}

#[test]
fn long_caches_are_split_and_merged_rightly() {
    for level in available() {
        with_level(level, || {
            for (heads, count) in [(Heads(14, 2, 64), 1), (Heads(4, 4, 20), 3), (Heads(32, 8, 16), 5)] {
                let sequences = [Sequence::new(1, heads, count, 0, 2500).chunked(128)];
                check(heads, &sequences, PLAIN, &format!("{level} {heads:?}"));
                let windowed = AttentionParams { window: Some(900), ..PLAIN };
                check(heads, &sequences, windowed, &format!("{level} {heads:?}, window"));
            }
        });
    }
}

/// Large scores of either sign: an online softmax that rescales wrongly, or overflows, is far off.
#[test]
fn extreme_scores_stay_finite() {
    let heads = Heads(2, 1, 16);
    for level in available() {
        with_level(level, || {
            for scale in [-60., 60.] {
                let params = AttentionParams { scale, ..PLAIN };
                let sequences = [Sequence::new(1, heads, 40, 0, 300).chunked(16)];
                let queries = queries_for(&sequences, heads);
                let found = attention(&queries, &segments(&sequences), params).unwrap();
                // Scores near 1000 have an error near 10⁻⁴, which the exponential passes on.
                let expected = expected(&queries, &sequences, params);
                assert_close(&found, &expected, 2e-3, &format!("{level}, scale {scale}"));
            }
        });
    }
}

#[test]
fn the_reference_matches_the_definition() {
    let heads = Heads(6, 2, 20);
    for window in [None, Some(7)] {
        for soft_cap in [None, Some(2.)] {
            let params = AttentionParams { scale: 0.3, soft_cap, window };
            let sequences = [
                Sequence::new(1, heads, 30, 0, 30).chunked(16),
                Sequence::new(3, heads, 1, 20, 61).chunked(16),
            ];
            let queries = queries_for(&sequences, heads);
            let found = reference::attention(&queries, &segments(&sequences), params).unwrap();
            assert_close(&found, &expected(&queries, &sequences, params), 1e-5, &format!("{params:?}"));
        }
    }
}

#[test]
fn a_prefill_in_pieces_equals_the_whole() {
    let heads = Heads(14, 2, 64);
    let (length, piece) = (100, 33);
    let whole = [Sequence::new(1, heads, length, 0, length).chunked(16)];
    let queries = queries_for(&whole, heads);
    let expected = wide(&attention(&queries, &segments(&whole), PLAIN).unwrap());
    for first in (0..length).step_by(piece) {
        let count = piece.min(length - first);
        let rows = queries.narrow(0, first, count).unwrap();
        let segment = Segment { end: first + count, rows: 0..count, ..whole[0].segment(0) };
        let found = attention(&rows, &[segment], PLAIN).unwrap();
        let range = first * 14 * 64..(first + count) * 14 * 64;
        assert_close(&found, &expected[range], 1e-6, &format!("rows from {first}"));
    }
}

#[test]
fn results_depend_neither_on_threads_nor_on_the_rest_of_the_batch() {
    let heads = Heads(14, 2, 64);
    let sequences = [
        Sequence::new(1, heads, 1, 0, 1700).chunked(128),
        Sequence::new(3, heads, 200, 0, 200).chunked(128),
        Sequence::new(5, heads, 9, 50, 900).chunked(128),
    ];
    let queries = queries_for(&sequences, heads);
    let mut by_threads = Vec::new();
    for threads in [1, 2, 3] {
        pool::set_threads(threads);
        by_threads.push(bits(&attention(&queries, &segments(&sequences), PLAIN).unwrap()));
    }
    pool::set_threads(0);
    assert!(by_threads.iter().all(|result| *result == by_threads[0]));

    let mut first = 0;
    for sequence in &sequences {
        let rows = queries.narrow(0, first, sequence.count).unwrap();
        let alone = bits(&attention(&rows, &[sequence.segment(0)], PLAIN).unwrap());
        assert_eq!(alone, by_threads[0][first * 14 * 64..(first + sequence.count) * 14 * 64]);
        first += sequence.count;
    }
}

#[test]
fn a_broken_key_shows() {
    let heads = Heads(2, 1, 16);
    for level in available() {
        with_level(level, || {
            let mut sequence = Sequence::new(1, heads, 1, 0, 20);
            sequence.keys = Tensor::full(f32::NAN, (20, 1, 16), &Device::Cpu).unwrap();
            let sequences = [sequence.chunked(16)];
            let found = attention(&queries_for(&sequences, heads), &segments(&sequences), PLAIN).unwrap();
            assert!(wide(&found).iter().all(|value| value.is_nan()), "{level}");
        });
    }
}

#[test]
fn no_rows_give_no_rows() {
    let queries = random(1, (0, 2, 16), DType::F32);
    assert_eq!(attention(&queries, &[], PLAIN).unwrap().dims(), [0, 2, 16]);
}

#[test]
fn wrong_arguments_are_named() {
    let heads = Heads(6, 2, 16);
    let sequence = Sequence::new(1, heads, 3, 0, 30).chunked(16);
    let queries = queries_for(std::slice::from_ref(&sequence), heads);
    let call = |queries: &Tensor, segment: Segment<'_>| message(attention(queries, &[segment], PLAIN));
    let good = || sequence.segment(0);

    let found = call(&queries, Segment { end: 33, ..good() });
    assert_eq!(found, "attention: segment 0 has chunks for 32 positions, expected 0..33");
    let found = call(&queries, Segment { rows: 0..2, ..good() });
    assert_eq!(found, "attention: the segments have 2 rows, expected 3 like `queries`");
    assert!(call(&queries, Segment { rows: 1..3, ..good() }).contains("segment 0 has the rows 1..3"));
    let found = call(&queries, Segment { end: 2, ..good() });
    assert_eq!(found, "attention: segment 0 has 3 rows, but its cache holds only positions 0..2");
    assert!(call(&queries, Segment { chunks: vec![], ..good() }).contains("chunks of keys []"));

    let found = call(&random(1, (3, 5, 16), DType::F32), good());
    assert_eq!(found, "attention: segment 0 has 2 key/value heads, expected a divisor of 5");
    let found = call(&random(1, (3, 6, 8), DType::F32), good());
    assert!(found.contains("keys [16, 2, 16], expected head size 8 as in [3, 6, 8]"), "{found}");
    let half = queries.to_dtype(DType::BF16).unwrap();
    assert_eq!(call(&half, good()), "attention: `queries` has dtype bf16; on the CPU it must be f32");
    let half = KvChunk {
        values: sequence.chunks[1].values.to_dtype(DType::F16).unwrap(),
        ..sequence.chunks[1].clone()
    };
    let found = call(&queries, Segment { chunks: vec![&sequence.chunks[0], &half], ..good() });
    assert_eq!(found, "attention: `values` has dtype f16; on the CPU it must be f32");

    let odd = Sequence::new(1, heads, 3, 0, 30).chunked(5);
    let found = call(&queries, Segment { chunks: vec![&sequence.chunks[0], &odd.chunks[0]], ..good() });
    assert_eq!(found, "attention: chunk 1 of segment 0 has keys [5, 2, 16], expected [16, 2, 16]");
    let none = AttentionParams { window: Some(0), ..PLAIN };
    assert!(message(attention(&queries, &[good()], none)).contains("`window` is 0"));
    let capped = AttentionParams { soft_cap: Some(0.), ..PLAIN };
    assert!(message(attention(&queries, &[good()], capped)).contains("`soft_cap` is 0"));
}
