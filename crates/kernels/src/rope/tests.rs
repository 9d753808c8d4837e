#![allow(clippy::unwrap_used)]

use candle_core::DType;

use super::*;
use crate::{
    simd::{available, with_level},
    testing::{assert_close, message, random, wide},
};

fn expected(x: &Tensor, rotation: &Rotation) -> Vec<f64> {
    let (_rows, heads, head_dim) = x.dims3().unwrap();
    let half = rotation.cos.dim(1).unwrap();
    let (mut turned, cos, sin) = (wide(x), wide(&rotation.cos), wide(&rotation.sin));
    for (index, head) in turned.chunks_mut(head_dim).enumerate() {
        for pair in 0..half {
            let angle = index / heads * half + pair;
            let (a, b) = match rotation.pairs {
                Pairs::Halves => (pair, half + pair),
                Pairs::Neighbours => (2 * pair, 2 * pair + 1),
            };
            let (first, second) = (head[a], head[b]);
            head[a] = first * cos[angle] - second * sin[angle];
            head[b] = second * cos[angle] + first * sin[angle];
        }
    }
    turned
}

#[test]
fn every_level_matches_the_definition() {
    for level in available() {
        with_level(level, || {
            for (heads, head_dim, half) in [(14, 64, 32), (2, 80, 10), (3, 36, 18), (1, 20, 0), (4, 2, 1)] {
                for rows in [0, 1, 5, 70] {
                    let x = random(1, (rows, heads, head_dim), DType::F32);
                    let (cos, sin) =
                        (random(2, (rows, half), DType::F32), random(3, (rows, half), DType::F32));
                    for pairs in [Pairs::Halves, Pairs::Neighbours] {
                        let rotation = Rotation { cos: cos.clone(), sin: sin.clone(), pairs };
                        let context =
                            format!("{level}, {rows} x {heads} x {head_dim}, {pairs:?}, half {half}");
                        let expected = expected(&x, &rotation);
                        assert_close(&rope(&x, &rotation).unwrap(), &expected, 1e-6, &context);
                        if half > 0 && rows > 0 {
                            assert_close(&reference::rope(&x, &rotation).unwrap(), &expected, 1e-6, &context);
                        }
                    }
                }
            }
        });
    }
}

#[test]
fn wrong_arguments_are_named() {
    let x = random(1, (3, 2, 8), DType::F32);
    let rotation = |rows: usize, half: usize| Rotation {
        cos: random(2, (rows, half), DType::F32),
        sin: random(3, (rows, half), DType::F32),
        pairs: Pairs::Halves,
    };
    let error = |x: &Tensor, rotation: &Rotation| message(rope(x, rotation));
    let found = error(&x, &rotation(3, 5));
    assert_eq!(found, "rope: `cos` is [3, 5], expected [3, up to 4] for `x` [3, 2, 8]");
    assert!(error(&x, &rotation(2, 4)).contains("`cos` is [2, 4]"));
    let uneven = Rotation { sin: rotation(3, 3).sin, ..rotation(3, 4) };
    assert_eq!(error(&x, &uneven), "rope: `sin` is [3, 3], expected [3, 4] like `cos`");
    let flat = x.reshape((3, 16)).unwrap();
    assert_eq!(error(&flat, &rotation(3, 4)), "rope: `x` is [3, 16], expected [rows, heads, D]");
    let narrow = rotation(3, 4);
    let narrow = Rotation { cos: narrow.cos.to_dtype(DType::BF16).unwrap(), ..narrow };
    assert!(error(&x, &narrow).starts_with("rope: `cos` must be contiguous f32; it is BF16"));
}
