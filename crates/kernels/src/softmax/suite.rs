//! On every device, against the definition.

use candle_core::{DType, Device};
use metal_candle_testkit::tolerance::Gate;

use super::*;
use crate::{
    simd::{available, with_level},
    testing::{
        bits, message, random,
        suite::{Case, Gradients, check, each_rig},
        wide,
    },
};

/// Odd and even widths, one row and many, rows of a warp, of a group and longer than registers hold.
const SHAPES: [&[usize]; 9] =
    [&[1], &[3, 7], &[2, 3, 64], &[5, 100], &[2, 2, 3, 128], &[3, 896], &[2, 1000], &[2, 5000], &[1, 40_000]];

/// In long rows far apart, so that some exponentials vanish; in short ones not, so that no column has it all.
fn input(shape: &[usize]) -> Tensor {
    let spread = if shape[shape.len() - 1] < 64 { 1. } else { 8. };
    (random(1, shape, DType::F64) * spread).unwrap()
}

/// Zeros and ones.
fn flags(seed: u64, shape: &[usize]) -> Tensor {
    random(seed, shape, DType::F32).ge(0f32).unwrap()
}

fn check_case(name: String, x: Tensor, seen: &Tensor, run: &dyn Fn(&Tensor) -> Result<Tensor>) {
    let seen = seen.to_dtype(DType::F64).unwrap();
    check(&Case {
        op: "softmax",
        name,
        gates: [Gate::Softmax, Gate::SoftmaxBackward],
        inputs: vec![x],
        run: &|inputs| Ok(vec![run(&inputs[0])?]),
        gradients: Gradients::Recorded,
        definition: &|inputs| Ok(vec![reference::softmax(&inputs[0], &seen)?]),
    });
}

#[test]
fn softmax_matches_the_definition() {
    for shape in SHAPES {
        let all = Tensor::ones(shape, DType::U8, &Device::Cpu).unwrap();
        check_case(format!("{shape:?}"), input(shape), &all, &|x| softmax(x, Mask::None));
    }
}

#[test]
fn causal_softmax_matches_the_definition() {
    for (shape, offset) in [
        (&[2, 3][..], 0),
        (&[5, 5], 0),
        (&[2, 3, 64], 61),
        (&[2, 40, 40], 0),
        (&[3, 100], 7),
        (&[2, 2, 1024], 900),
        (&[3, 5000], 10),
        (&[2, 40_000], 39_000),
        (&[4, 16], usize::MAX),
    ] {
        let (queries, columns) = (shape[shape.len() - 2], shape[shape.len() - 1]);
        let seen = |index: usize| u8::from(index % columns <= (index / columns).saturating_add(offset));
        let seen: Vec<u8> = (0..queries * columns).map(seen).collect();
        let seen = Tensor::from_vec(seen, (queries, columns), &Device::Cpu).unwrap();
        let name = format!("{shape:?}, causal, offset {offset}");
        check_case(name, input(shape), &seen, &|x| softmax(x, Mask::Causal { offset }));
    }
}

#[test]
fn masked_softmax_matches_the_definition() {
    for (shape, mask_shape) in [
        (&[9][..], &[9][..]),
        (&[3, 7], &[3, 7]),
        (&[2, 3, 4, 64], &[4, 64]),
        (&[2, 3, 4, 64], &[2, 1, 1, 64]),
        (&[2, 3, 4, 64], &[2, 1, 4, 64]),
        (&[2, 3, 4, 64], &[1, 3, 1, 64]),
        (&[2, 3, 4, 30], &[3, 4, 30]),
        (&[2, 3, 2, 3, 8], &[2, 1, 2, 1, 8]),
        (&[2, 2, 1024], &[2, 1, 1024]),
        (&[2, 1, 5000], &[5000]),
        (&[2, 40_000], &[2, 40_000]),
    ] {
        let mask = flags(5, mask_shape);
        let name = format!("{shape:?}, mask {mask_shape:?}");
        check_case(name, input(shape), &mask, &|x| softmax(x, Mask::Tensor(&mask.to_device(x.device())?)));
    }
}

#[test]
fn a_strided_mask_is_read_where_it_is() {
    let (x, mask) = (random(1, (4, 6), DType::F32), flags(2, &[6, 4]).t().unwrap());
    let dense = softmax(&x, Mask::Tensor(&mask.contiguous().unwrap())).unwrap();
    assert_eq!(bits(&softmax(&x, Mask::Tensor(&mask)).unwrap()), bits(&dense));
    let later = Tensor::cat(&[&flags(3, &[1, 6]), &mask.contiguous().unwrap()], 0).unwrap();
    let later = later.narrow(0, 1, 4).unwrap();
    assert_eq!(bits(&softmax(&x, Mask::Tensor(&later)).unwrap()), bits(&dense));
}

#[test]
fn rows_that_see_nothing_are_zero_and_pass_no_gradient() {
    for width in [1, 64, 1000, 40_000] {
        each_rig("softmax", "forward", DType::F32, |device| {
            let x = random(1, (2, width), DType::F32).to_device(device).unwrap();
            let mask = Tensor::zeros((2, width), DType::U8, device).unwrap();
            let y = softmax(&x, Mask::Tensor(&mask)).unwrap();
            assert!(wide(&y.to_device(&Device::Cpu).unwrap()).iter().all(|value| *value == 0.));
            let dx = softmax_backward(&y, &x).unwrap().to_device(&Device::Cpu).unwrap();
            assert!(wide(&dx).iter().all(|value| *value == 0.));
        });
    }
}

#[test]
fn large_numbers_do_not_overflow_and_what_is_no_number_shows() {
    for width in [4, 33, 2000] {
        each_rig("softmax", "forward", DType::F32, |device| {
            let run = |values: Vec<f32>| {
                let x = Tensor::from_vec(values, (1, width), device).unwrap();
                wide(&softmax(&x, Mask::None).unwrap().to_device(&Device::Cpu).unwrap())
            };
            let mut values = vec![-3e38; width];
            (values[0], values[width - 1]) = (3e38, 3e38);
            let y = run(values.clone());
            assert_eq!((y[0], y[1], y[width - 1]), (0.5, 0., 0.5));
            values[1] = f32::NEG_INFINITY;
            assert_eq!(run(values.clone())[1], 0.);
            values[2] = f32::NAN;
            assert!(run(values).iter().all(|value| value.is_nan()));
            assert!(run(vec![f32::NAN; width]).iter().all(|value| value.is_nan()));
        });
    }
}

#[test]
fn a_row_does_not_depend_on_the_rows_beside_it() {
    for level in available() {
        with_level(level, || {
            let x = random(3, (100, 896), DType::F32);
            let whole = bits(&softmax(&x, Mask::None).unwrap());
            for row in [0, 1, 57, 99] {
                let alone = softmax(&x.narrow(0, row, 1).unwrap(), Mask::None).unwrap();
                assert_eq!(bits(&alone), whole[row * 896..(row + 1) * 896]);
            }
        });
    }
}

#[test]
fn no_rows_and_no_columns_are_fine() {
    for shape in [[0, 5], [5, 0]] {
        let x = random(1, &shape, DType::F32);
        let mask = Tensor::ones(&shape, DType::U8, &Device::Cpu).unwrap();
        for mask in [Mask::None, Mask::Causal { offset: 0 }, Mask::Tensor(&mask)] {
            assert_eq!(softmax(&x, mask).unwrap().dims(), shape);
        }
    }
}

#[test]
fn wrong_arguments_are_named() {
    let x = random(1, (2, 3, 4), DType::F32);
    let mask = Tensor::ones((2, 4), DType::U8, &Device::Cpu).unwrap();
    assert_eq!(
        message(softmax(&x, Mask::Tensor(&mask))),
        "softmax: `mask` is [2, 4]; expected C columns and other dimensions like `x` [2, 3, 4], 1 or absent"
    );
    let narrow = Tensor::ones((3, 1), DType::U8, &Device::Cpu).unwrap();
    assert!(message(softmax(&x, Mask::Tensor(&narrow))).starts_with("softmax: `mask` is [3, 1]"));
    let float = mask.to_dtype(DType::F32).unwrap();
    assert_eq!(
        message(softmax(&x, Mask::Tensor(&float))),
        "softmax: `mask` has dtype F32, expected U8 (0 hides a column)"
    );
    let row = random(1, 4, DType::F32);
    assert_eq!(
        message(softmax(&row, Mask::Causal { offset: 0 })),
        "softmax: `x` is [4], expected [.., Q, C] with a causal mask"
    );
    assert_eq!(
        message(softmax_backward(&x, &row)),
        "softmax_backward: `dy` is ([4], F32), expected ([2, 3, 4], F32) like `y`"
    );
}
