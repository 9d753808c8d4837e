//! On every device, against sorting.

use candle_core::{DType, Device};
use metal_candle_testkit::tolerance::Gate;

use super::*;
use crate::simd::{available, with_level};
use crate::testing::{
    message, random,
    suite::{Case, Gradients, Rig, check, rigs},
};

const GATES: [Gate; 2] = [Gate::Selection, Gate::Selection];

/// Odd widths, parts of every kind, and more parts than a round sorts.
const SHAPES: [[usize; 2]; 7] = [[1, 1], [3, 7], [2, 33], [5, 1000], [2, 4097], [3, 9001], [1, 20_000]];

/// The places of a row's elements, best first.
fn order(row: &[f64]) -> Vec<usize> {
    let mut places: Vec<usize> = (0..row.len()).collect();
    places.sort_by(|&left, &right| {
        let [a, b] = [row[left], row[right]];
        let numbers = || b.partial_cmp(&a).unwrap();
        b.is_nan().cmp(&a.is_nan()).then_with(|| if a.is_nan() { left.cmp(&right) } else { numbers() })
    });
    places
}

fn definition(logits: &Tensor, k: usize) -> Result<[Tensor; 2]> {
    let rows = logits.to_vec2::<f64>()?;
    let best: Vec<Vec<usize>> = rows.iter().map(|row| order(row)[..k].to_vec()).collect();
    let values = best.iter().zip(&rows).flat_map(|(best, row)| best.iter().map(|&place| row[place]));
    let shape = (rows.len(), k);
    let values = Tensor::from_iter(values, &Device::Cpu)?.reshape(shape)?;
    let ids = Tensor::from_iter(best.iter().flatten().map(|&place| place as u32), &Device::Cpu)?;
    Ok([values, ids.reshape(shape)?])
}

/// Half precision has many equal numbers, and coarse ones even more.
fn inputs(shape: [usize; 2]) -> [(&'static str, Tensor); 2] {
    let fine = random(1, (shape[0], shape[1]), DType::F64);
    let coarse = ((&fine * 4.).unwrap().round().unwrap() / 4.).unwrap();
    [("fine", fine), ("coarse", coarse)]
}

#[test]
fn the_largest_is_found() {
    for shape in SHAPES {
        for (name, logits) in inputs(shape) {
            check(&Case {
                op: "argmax",
                name: format!("{shape:?}, {name}"),
                gates: GATES,
                inputs: vec![logits],
                run: &|inputs| Ok(vec![argmax(&inputs[0])?]),
                gradients: Gradients::None,
                definition: &|inputs| {
                    let [_, ids] = definition(&inputs[0], 1)?;
                    Ok(vec![ids.squeeze(1)?])
                },
            });
        }
    }
}

#[test]
fn the_best_are_found_in_order() {
    for shape in SHAPES {
        // What takes several rounds takes the emulator long.
        let sizes: &[usize] = if shape[1] > 4096 { &[1024] } else { &[1, 7, 1000] };
        for k in sizes.iter().copied().filter(|k| *k <= shape[1]) {
            for (name, logits) in inputs(shape) {
                check(&Case {
                    op: "top_k",
                    name: format!("{shape:?}, {k}, {name}"),
                    gates: GATES,
                    inputs: vec![logits],
                    run: &|inputs| {
                        let (values, ids) = top_k(&inputs[0], k)?;
                        Ok(vec![values, ids])
                    },
                    gradients: Gradients::None,
                    definition: &|inputs| Ok(definition(&inputs[0], k)?.to_vec()),
                });
            }
        }
    }
}

fn on(rig: &Rig, row: &[f32]) -> Tensor {
    Tensor::from_slice(row, (1, row.len()), rig.device()).unwrap()
}

#[test]
fn extremes_and_zeros_are_ordered_and_what_is_no_number_comes_first() {
    let (nan, infinity) = (f32::NAN, f32::INFINITY);
    let broken = [1., -nan, infinity, nan, -infinity];
    let rows: [(&[f32], &[u32]); 5] = [
        (&[-infinity, -3e38, 0., infinity, 1e-45, -1e-45], &[3, 4, 2, 5, 1, 0]),
        (&[-0., 0., -0.], &[0, 1, 2]),
        (&[-infinity; 3], &[0, 1, 2]),
        (&broken, &[1, 3, 2, 0, 4]),
        (&[nan; 2], &[0, 1]),
    ];
    for rig in rigs() {
        rig.with(|| {
            for (row, expected) in rows {
                let logits = on(&rig, row);
                let (values, ids) = top_k(&logits, row.len()).unwrap();
                assert_eq!(ids.to_vec2::<u32>().unwrap()[0], expected, "{rig}: {row:?}");
                assert_eq!(
                    argmax(&logits).unwrap().to_vec1::<u32>().unwrap(),
                    [expected[0]],
                    "{rig}: {row:?}"
                );
                for (value, id) in values.to_vec2::<f32>().unwrap()[0].iter().zip(expected) {
                    let expected = row[*id as usize];
                    assert!(*value == expected || value.is_nan() && expected.is_nan(), "{rig}: {row:?}");
                }
            }
            // Past the first block, where the best so far is already known.
            let mut row = vec![0.5; 5000];
            row[4321] = nan;
            assert_eq!(argmax(&on(&rig, &row)).unwrap().to_vec1::<u32>().unwrap(), [4321], "{rig}");
        });
    }
}

#[test]
fn wrong_arguments_are_named() {
    let logits = random(1, (2, 2000), DType::F32);
    let expected = "top_k: 1025 of 2000 logits were asked for; use 1 to 1024";
    assert_eq!(message(top_k(&logits, 1025)), expected);
    assert_eq!(message(top_k(&logits, 0)), "top_k: 0 of 2000 logits were asked for; use 1 to 1024");
    let small = logits.narrow(1, 0, 3).unwrap();
    assert_eq!(message(top_k(&small, 4)), "top_k: 4 of 3 logits were asked for; use 1 to 3");
    assert_eq!(
        message(argmax(&logits.flatten_all().unwrap())),
        "argmax: `logits` is [4000], expected [R, V]"
    );
    assert!(message(argmax(&logits.to_dtype(DType::F64).unwrap())).contains("dtype F64"));
}

/// Rows that are read in parts, in order: the bar rises with every number, or never.
#[test]
fn long_rows_are_ordered_at_every_level() {
    let count = 70_001;
    let random = random(1, count, DType::F32).to_vec1::<f32>().unwrap();
    let mut broken = random.clone();
    (broken[69_990], broken[40_000]) = (f32::NAN, f32::NAN);
    let rows: [Vec<f32>; 5] = [
        (0..count).map(|place| place as f32).collect(),
        (0..count).map(|place| -(place as f32)).collect(),
        vec![f32::NEG_INFINITY; count],
        random,
        broken,
    ];
    for level in available() {
        with_level(level, || {
            for row in &rows {
                let wide: Vec<f64> = row.iter().copied().map(f64::from).collect();
                let expected = order(&wide);
                for rows in [1, 4] {
                    let logits = Tensor::from_slice(&row.repeat(rows), (rows, count), &Device::Cpu).unwrap();
                    for k in [1, 50, 1024] {
                        for ids in top_k(&logits, k).unwrap().1.to_vec2::<u32>().unwrap() {
                            assert!(
                                ids.iter().zip(&expected).all(|(&id, &place)| id as usize == place),
                                "{level} {k}"
                            );
                        }
                    }
                }
            }
        });
    }
}

#[test]
fn strided_logits_give_the_same() {
    let logits = random(1, (5, 300), DType::F32);
    let strided = logits.t().unwrap().contiguous().unwrap().t().unwrap();
    let ids = |logits: &Tensor| argmax(logits).unwrap().to_vec1::<u32>().unwrap();
    assert_eq!(ids(&strided), ids(&logits));
}
