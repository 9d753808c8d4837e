#![allow(clippy::unwrap_used)]

use super::*;
use crate::{
    simd::{available, with_level},
    testing::{assert_close, message, random, wide},
};

#[test]
fn every_level_gathers_widens_and_scales() {
    for level in available() {
        with_level(level, || {
            for dtype in [DType::F32, DType::BF16, DType::F16] {
                for (width, count) in [(1, 5), (20, 3), (64, 0), (100, 700), (896, 60)] {
                    let table = random(1, (50, width), dtype);
                    let ids: Vec<u32> = (0..count).map(|index| index * 7 % 50).collect();
                    let all = wide(&table);
                    let row = |id: &u32| all[*id as usize * width..][..width].iter().map(|value| 1.5 * value);
                    let expected: Vec<f64> = ids.iter().flat_map(row).collect();
                    let context = format!("{level} {dtype:?} {width}");
                    let found = embedding(&table, &ids, 1.5, DType::F32).unwrap();
                    assert_eq!(found.dims(), [count as usize, width]);
                    assert_close(&found, &expected, 1e-7, &context);
                    if count > 0 {
                        let found = reference::embedding(&table, &ids, 1.5, DType::F32).unwrap();
                        assert_close(&found, &expected, 1e-7, &context);
                    }
                }
            }
        });
    }
}

#[test]
fn the_gradient_of_few_rows_and_of_many_is_summed_in_order() {
    for level in available() {
        with_level(level, || {
            // Of a large vocabulary, of which few rows are used; and of a small one.
            for (vocabulary, width) in [(5000, 33), (40, 100)] {
                let ids: Vec<u32> = (0..300).map(|index| index * index % 31).collect();
                let dy = random(1, (ids.len(), width), DType::F32);
                let rows = dy.to_vec2::<f32>().unwrap();
                let mut expected = vec![vec![0f32; width]; vocabulary];
                for (&id, row) in ids.iter().zip(&rows) {
                    for (sum, value) in expected[id as usize].iter_mut().zip(row) {
                        *sum += 0.5 * value;
                    }
                }
                let found = embedding_backward(&ids, &dy, vocabulary, 0.5).unwrap();
                assert_eq!(found.to_vec2::<f32>().unwrap(), expected, "{level} {vocabulary}");
            }
        });
    }
}

#[test]
fn without_a_scale_rows_are_exact() {
    let table = random(1, (9, 33), DType::BF16);
    let found = embedding(&table, &[8, 0], 1., DType::F32).unwrap();
    assert_eq!(wide(&found), [&wide(&table)[8 * 33..], &wide(&table)[..33]].concat());
}

#[test]
fn wrong_arguments_are_named() {
    let table = random(1, (9, 4), DType::F32);
    let error = |table: &Tensor, ids: &[u32]| message(embedding(table, ids, 1., DType::F32));
    let found = error(&table, &[3, 9]);
    assert_eq!(found, "embedding: id 9 at index 1 is outside the vocabulary of 9");
    assert!(error(&table.to_dtype(DType::F64).unwrap(), &[3]).contains("`table` has dtype F64"));
    let flat = table.flatten_all().unwrap();
    assert_eq!(error(&flat, &[0]), "embedding: `table` is [36], expected [vocab, D]");
    let found = message(embedding_backward(&[3, 9], &table, 9, 1.));
    assert_eq!(found, "embedding_backward: id 9 at index 1 is outside the vocabulary of 9");
    let found = message(embedding_backward(&[3, 8], &table, 9, 1.));
    assert_eq!(found, "embedding_backward: `dy` is [9, 4], expected [2, D]");
}
