#![allow(clippy::unwrap_used)]

use candle_core::{DType, Device};
use metal_candle_testkit::{
    golden,
    tolerance::{Gate, Precision, assert_close, tolerance},
};

use super::*;
use crate::{
    pool,
    simd::{available, with_level},
    testing::{bits, message, random},
};

const PLAIN: AttentionParams = AttentionParams { scale: 0.3, soft_cap: None, window: None };

fn packing(starts: &[u32]) -> PackedAttention {
    PackedAttention { starts: starts.to_vec(), params: PLAIN, causal: true }
}

/// Queries, keys and values.
fn inputs(rows: usize, heads: usize, groups: usize, head_dim: usize) -> [Tensor; 3] {
    let shapes = [heads, groups, groups].map(|heads| (rows, heads, head_dim));
    let mut seed = 0;
    shapes.map(|shape| {
        seed += 1;
        random(seed, shape, DType::F32)
    })
}

/// Output, lse and the three gradients.
fn all_of(inputs: &[Tensor; 3], d_out: &Tensor, packing: &PackedAttention) -> [Tensor; 5] {
    let [queries, keys, values] = inputs;
    let (out, lse) = packed_attention_forward(queries, keys, values, packing).unwrap();
    let gradients = packed_attention_backward(queries, keys, values, &out, &lse, d_out, packing).unwrap();
    let (d_queries, d_keys, d_values) = gradients;
    [out, lse, d_queries, d_keys, d_values]
}

#[test]
fn a_packed_sequence_equals_the_sequence_alone() {
    let inputs = inputs(500, 6, 2, 20);
    let d_out = random(9, (500, 6, 20), DType::F32);
    let starts = [0, 1, 300, 301, 500];
    for window in [None, Some(30)] {
        for causal in [true, window.is_some()] {
            let params = AttentionParams { window, ..PLAIN };
            let packing = PackedAttention { starts: starts.to_vec(), params, causal };
            let packed = all_of(&inputs, &d_out, &packing);
            for pair in starts.windows(2) {
                let (start, count) = (pair[0] as usize, (pair[1] - pair[0]) as usize);
                let rows = |tensor: &Tensor| tensor.narrow(0, start, count).unwrap();
                let alone = PackedAttention { starts: vec![0, count as u32], ..packing.clone() };
                let alone = all_of(&inputs.each_ref().map(rows), &rows(&d_out), &alone);
                for (index, (packed, alone)) in packed.iter().zip(&alone).enumerate() {
                    let of_sequence =
                        if index == 1 { packed.narrow(1, start, count).unwrap() } else { rows(packed) };
                    assert_eq!(bits(&of_sequence), bits(alone), "tensor {index} of rows {pair:?}");
                }
            }
        }
    }
}

#[test]
fn results_do_not_depend_on_the_number_of_threads() {
    let inputs = inputs(700, 4, 2, 16);
    let d_out = random(9, (700, 4, 16), DType::F32);
    let packing = packing(&[0, 150, 151, 700]);
    let mut by_threads = Vec::new();
    for threads in [1, 2, 3, 5] {
        pool::set_threads(threads);
        by_threads.push(all_of(&inputs, &d_out, &packing).map(|tensor| bits(&tensor)));
    }
    pool::set_threads(0);
    assert!(by_threads.iter().all(|results| *results == by_threads[0]));
}

/// Queries, keys and values as parts of one matrix, and transposed ones, which have to be copied.
#[test]
fn strided_inputs_give_the_same() {
    let (rows, heads, groups, head_dim) = (70, 4, 2, 20);
    let fused = random(1, (rows, heads + 2 * groups, head_dim), DType::F32);
    let part = |first, count| fused.narrow(1, first, count).unwrap();
    let strided = [part(0, heads), part(heads, groups), part(heads + groups, groups)];
    let wider = random(9, (rows, heads + 1, head_dim), DType::F32);
    let d_out = wider.narrow(1, 1, heads).unwrap();
    let packing = packing(&[0, 30, 70]);
    let dense = strided.each_ref().map(|tensor| tensor.contiguous().unwrap());
    let expected = all_of(&dense, &d_out.contiguous().unwrap(), &packing).map(|tensor| bits(&tensor));
    assert_eq!(all_of(&strided, &d_out, &packing).map(|tensor| bits(&tensor)), expected);

    let transposed = |tensor: &Tensor| tensor.transpose(0, 1).unwrap().contiguous().unwrap().transpose(0, 1);
    let transposed = dense.each_ref().map(|tensor| transposed(tensor).unwrap());
    assert!(!has_dense_rows(transposed[0].layout()));
    assert_eq!(all_of(&transposed, &d_out, &packing).map(|tensor| bits(&tensor)), expected);
    let mixed = [dense[0].clone(), strided[1].clone(), dense[2].clone()];
    assert_eq!(all_of(&mixed, &d_out, &packing).map(|tensor| bits(&tensor)), expected);
}

/// What PyTorch computes in f64, see `golden/README.md`.
#[test]
fn gradients_match_pytorch() {
    let file = golden::Tensors::open("ops/attention.safetensors");
    let cases = [
        ("causal", packing(&[0, 9, 10, 23])),
        ("full", PackedAttention { causal: false, ..packing(&[0, 9, 10, 23]) }),
        ("gemma", {
            let params = AttentionParams { soft_cap: Some(2.), window: Some(5), ..PLAIN };
            PackedAttention { params, ..packing(&[0, 9, 10, 23]) }
        }),
    ];
    for level in available() {
        for (case, packing) in &cases {
            let tensor = |name: &str| {
                let found = file.floats(&format!("{case}.{name}"));
                Tensor::from_slice(&found.values, found.shape.clone(), &Device::Cpu).unwrap()
            };
            let inputs = ["queries", "keys", "values"].map(tensor);
            let found = with_level(level, || all_of(&inputs, &tensor("d_out"), packing));
            for (name, found) in ["out", "lse", "d_queries", "d_keys", "d_values"].into_iter().zip(&found) {
                let gate = if name.starts_with("d_") { Gate::AttentionBackward } else { Gate::Attention };
                let found: Vec<f32> = found.flatten_all().unwrap().to_vec1().unwrap();
                let expected = &file.floats(&format!("{case}.{name}")).values;
                let context = format!("{level}, {case}, {name}");
                assert_close(&found, expected, tolerance(gate, Precision::F32), context);
            }
        }
    }
}

/// Gradients of queries and keys are nothing but rounding there, which no relative tolerance fits.
#[test]
fn a_row_that_sees_only_itself_passes_its_gradient_to_its_value() {
    let inputs = inputs(40, 4, 2, 20);
    let d_out = random(9, (40, 4, 20), DType::F32);
    let alone = packing(&(0..=40).collect::<Vec<u32>>());
    let windowed =
        PackedAttention { params: AttentionParams { window: Some(1), ..PLAIN }, ..packing(&[0, 40]) };
    let d_values = d_out.reshape((40, 2, 2, 20)).unwrap().sum(2).unwrap();
    for level in available() {
        for packing in [&alone, &windowed] {
            let found = with_level(level, || all_of(&inputs, &d_out, packing));
            crate::testing::assert_close(&found[4], &crate::testing::wide(&d_values), 1e-6, "values");
            for gradient in &found[2..4] {
                let zeros = vec![0.; gradient.elem_count()];
                crate::testing::assert_close(gradient, &zeros, 1e-5, "queries and keys");
            }
        }
    }
}

/// Heads so large that the CPU takes a range of keys in several parts, of which the second's queries reach further.
#[test]
fn very_large_heads_match_the_definition() {
    let inputs = inputs(130, 2, 1, 600);
    let d_out = random(9, (130, 2, 600), DType::F32);
    for window in [None, Some(20)] {
        let params = AttentionParams { window, scale: 0.04, ..PLAIN };
        let packing = PackedAttention { params, ..packing(&[0, 130]) };
        let wide = |tensor: &Tensor| tensor.to_dtype(DType::F64).unwrap();
        let variables = inputs.each_ref().map(|input| candle_core::Var::from_tensor(&wide(input)).unwrap());
        let [queries, keys, values] = variables.each_ref().map(candle_core::Var::as_tensor);
        let [out, lse] = reference::packed_attention(queries, keys, values, &packing).unwrap();
        let store = (&out * wide(&d_out)).unwrap().sum_all().unwrap().backward().unwrap();
        let gradients = [queries, keys, values].map(|input| store.get(input).unwrap().clone());
        let expected: Vec<Tensor> = [out, lse].into_iter().chain(gradients).collect();
        for level in available() {
            let found = with_level(level, || all_of(&inputs, &d_out, &packing));
            for (index, (found, expected)) in found.iter().zip(&expected).enumerate() {
                let context = format!("{level}, {window:?}, tensor {index}");
                crate::testing::assert_close(found, &crate::testing::wide(expected), 2e-5, &context);
            }
        }
    }
}

/// Scores near 1000: the weights are computed again from a large lse.
#[test]
fn extreme_scores_stay_finite() {
    let [queries, keys, values] = inputs(150, 2, 1, 16);
    let keys = (keys * 100.).unwrap();
    for level in available() {
        with_level(level, || {
            let d_out = random(9, (150, 2, 16), DType::F32);
            let inputs = [queries.clone(), keys.clone(), values.clone()];
            for tensor in all_of(&inputs, &d_out, &packing(&[0, 150])) {
                let values: Vec<f32> = tensor.flatten_all().unwrap().to_vec1().unwrap();
                assert!(values.iter().all(|value| value.is_finite()), "{level}");
            }
        });
    }
}

#[test]
fn no_rows_give_no_rows() {
    let [queries, keys, values] = inputs(0, 4, 2, 16);
    let d_out = queries.clone();
    let found = all_of(&[queries, keys, values], &d_out, &packing(&[0]));
    assert_eq!(found[0].dims(), [0, 4, 16]);
    assert_eq!(found[1].dims(), [4, 0]);
    assert_eq!(found[3].dims(), [0, 2, 16]);
}

#[test]
fn wrong_arguments_are_named() {
    let [queries, keys, values] = inputs(10, 4, 2, 16);
    let good = packing(&[0, 3, 10]);
    let call = |keys: &Tensor, values: &Tensor, packing: &PackedAttention| {
        message(packed_attention(&queries, keys, values, packing))
    };
    let [_, short, _] = inputs(9, 4, 2, 16);
    let expected = "packed_attention: `keys` is [9, 2, 16], expected [10, G, 16] for `queries` [10, 4, 16]";
    assert_eq!(call(&short, &values, &good), expected);
    let [_, three, _] = inputs(10, 4, 3, 16);
    let expected = "packed_attention: `keys` has 3 heads, expected a divisor of the 4 of `queries`";
    assert_eq!(call(&three, &values, &good), expected);
    let expected = "packed_attention: `values` is [9, 2, 16], expected [10, 2, 16] like `keys`";
    assert_eq!(call(&keys, &short, &good), expected);
    let half = values.to_dtype(DType::F16).unwrap();
    let expected = "packed_attention: `values` is F16, expected F32 like `queries`";
    assert_eq!(call(&keys, &half, &good), expected);

    for starts in [&[][..], &[0], &[1, 10], &[0, 9]] {
        assert!(call(&keys, &values, &packing(starts)).contains("expected from 0 to 10, the rows"));
    }
    let expected = "packed_attention: `starts` has [4, 4] at 1, expected at least one row per sequence";
    assert_eq!(call(&keys, &values, &packing(&[0, 4, 4, 10])), expected);
    let windowed = PackedAttention {
        params: AttentionParams { window: Some(3), ..PLAIN },
        causal: false,
        ..good.clone()
    };
    assert!(call(&keys, &values, &windowed).contains("`window` needs `causal`"));
    let none = PackedAttention { params: AttentionParams { window: Some(0), ..PLAIN }, ..good.clone() };
    assert!(call(&keys, &values, &none).contains("`window` is 0"));

    let (out, lse) = packed_attention_forward(&queries, &keys, &values, &good).unwrap();
    let backward = |lse: &Tensor, d_out: &Tensor| {
        message(packed_attention_backward(&queries, &keys, &values, &out, lse, d_out, &good))
    };
    let expected = "packed_attention_backward: `lse` is [10, 4] F32, expected [4, 10] F32";
    assert_eq!(backward(&lse.t().unwrap(), &out), expected);
    assert!(backward(&lse, &keys).contains("`d_out` is [10, 2, 16] F32, expected [10, 4, 16] F32"));
}
