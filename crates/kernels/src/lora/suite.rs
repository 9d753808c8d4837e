//! On every device, against the definition.

use candle_core::Device;
use metal_candle_testkit::tolerance::Gate;

use super::*;
use crate::{
    linear::Projection,
    pool,
    testing::{
        bits, random,
        suite::{Case, Gradients, check},
    },
};

const GATES: [Gate; 2] = [Gate::Lora, Gate::LoraBackward];
const SCALE: f32 = 0.75;

/// The leading dimensions of `x`, K, N and r: one row and many; ranks and widths that fill tiles and do not.
const SHAPES: [(&[usize], usize, usize, usize); 7] = [
    (&[1], 3, 5, 1),
    (&[7], 33, 70, 3),
    (&[2, 9], 40, 64, 16),
    (&[120], 20, 36, 8),
    (&[70], 300, 17, 20),
    (&[5, 60], 16, 300, 33),
    (&[3], 1100, 600, 5),
];

fn inputs((leading, inputs, outputs, rank): (&[usize], usize, usize, usize)) -> Vec<Tensor> {
    vec![
        random(1, [leading, &[inputs]].concat(), DType::F64),
        random(2, (rank, inputs), DType::F64),
        random(3, (outputs, rank), DType::F64),
        random(4, [leading, &[outputs]].concat(), DType::F64),
    ]
}

fn adapter(inputs: &[Tensor]) -> LoraAdapter {
    LoraAdapter { a: inputs[1].clone(), b: inputs[2].clone(), scale: SCALE }
}

fn zeros(like: &Tensor, dtype: DType) -> Tensor {
    Tensor::zeros(like.shape(), dtype, like.device()).unwrap()
}

#[test]
fn a_delta_and_its_gradients_match_the_definition() {
    for shape in SHAPES {
        check(&Case {
            op: "lora",
            name: format!("{shape:?}"),
            gates: GATES,
            inputs: inputs(shape)[..3].to_vec(),
            run: &|inputs| Ok(vec![lora_delta(&inputs[0], &adapter(inputs))?]),
            gradients: Gradients::Recorded,
            definition: &|inputs| Ok(vec![reference::delta(&inputs[0], &inputs[1], &inputs[2], SCALE)?]),
        });
    }
}

#[test]
fn halves_in_place_and_explicit_gradients_match_the_definition() {
    for shape in SHAPES {
        check(&Case {
            op: "lora",
            name: format!("{shape:?}, in place"),
            gates: GATES,
            inputs: inputs(shape),
            run: &|inputs| {
                let (y, adapter) = (inputs[3].copy()?, adapter(inputs));
                lora_up_in_place(&lora_down(&inputs[0], &adapter)?, &y, &adapter)?;
                Ok(vec![y])
            },
            gradients: Gradients::Explicit(&|inputs, dy| {
                let (x, adapter) = (&inputs[0], adapter(inputs));
                let projected = lora_down(x, &adapter)?;
                // What is there already is kept: the gradient of `x` starts at one, and one is taken off again.
                let dx = x.ones_like()?;
                let (da, db) = (zeros(&adapter.a, DType::F32), zeros(&adapter.b, DType::F32));
                let into = LoraGradients { dx: Some(&dx), da: &da, db: &db };
                lora_backward(x, &dy[0], &adapter, &projected, &into)?;
                Ok(vec![(dx - 1.)?, da, db, dy[0].clone()])
            }),
            definition: &|inputs| {
                Ok(vec![(&inputs[3] + reference::delta(&inputs[0], &inputs[1], &inputs[2], SCALE)?)?])
            },
        });
    }
}

/// Rows 1..4 and 4..9 of 12 have adapters of different ranks; what is before and after has none.
const SEGMENTS: [Range<usize>; 2] = [1..4, 4..9];

fn segmented(inputs: &[Tensor], run: &dyn Fn(&[LoraSegment<'_>]) -> Result<Tensor>) -> Result<Tensor> {
    let adapters = [2, 4].map(|index| LoraAdapter {
        a: inputs[index].clone(),
        b: inputs[index + 1].clone(),
        scale: SCALE * index as f32,
    });
    let segments: Vec<LoraSegment<'_>> =
        SEGMENTS.into_iter().zip(&adapters).map(|(rows, adapter)| LoraSegment { rows, adapter }).collect();
    run(&segments)
}

fn segmented_inputs() -> Vec<Tensor> {
    [(12, 40), (12, 50), (8, 40), (50, 8), (3, 40), (50, 3)]
        .into_iter()
        .enumerate()
        .map(|(seed, shape)| random(seed as u64, shape, DType::F64))
        .collect()
}

fn segmented_definition(inputs: &[Tensor]) -> Result<Tensor> {
    let mut parts = vec![inputs[1].narrow(0, 0, 1)?];
    for (rows, index) in SEGMENTS.into_iter().zip([2, 4]) {
        let x = inputs[0].narrow(0, rows.start, rows.len())?;
        let delta = reference::delta(&x, &inputs[index], &inputs[index + 1], SCALE * index as f32)?;
        parts.push((inputs[1].narrow(0, rows.start, rows.len())? + delta)?);
    }
    parts.push(inputs[1].narrow(0, 9, 3)?);
    Tensor::cat(&parts, 0)
}

#[test]
fn segments_with_adapters_of_their_own_match_the_definition() {
    check(&Case {
        op: "lora",
        name: "segments".into(),
        gates: GATES,
        inputs: segmented_inputs(),
        run: &|inputs| Ok(vec![segmented(inputs, &|segments| lora(&inputs[0], &inputs[1], segments))?]),
        gradients: Gradients::Recorded,
        definition: &|inputs| Ok(vec![segmented_definition(inputs)?]),
    });
    for in_place in [false, true] {
        check(&Case {
            op: "lora",
            name: format!("segments outside of a graph, in place {in_place}"),
            gates: GATES,
            inputs: segmented_inputs(),
            run: &|inputs| {
                let sum = |segments: &[LoraSegment<'_>]| {
                    if !in_place {
                        return lora(&inputs[0], &inputs[1], segments);
                    }
                    let y = inputs[1].copy()?;
                    lora_in_place(&inputs[0], &y, segments)?;
                    Ok(y)
                };
                Ok(vec![segmented(inputs, &sum)?])
            },
            gradients: Gradients::None,
            definition: &|inputs| Ok(vec![segmented_definition(inputs)?]),
        });
    }
}

#[test]
fn stacked_adapters_match_the_definition() {
    // Few rows in any order, and more than one launch takes; ranks up to those of the stack, aligned and not.
    for (count, (inputs, outputs, most)) in
        [(1, (64, 40, 8)), (6, (40, 72, 16)), (9, (33, 20, 5)), (16, (2100, 300, 24)), (70, (24, 50, 8))]
    {
        let slots: Vec<Option<u32>> =
            (0..count).map(|row| [Some(2), None, Some(0)][row * 7 % 5 % 3]).collect();
        let sizes =
            [(count, inputs), (count, outputs), (most, inputs), (outputs, most), (2, inputs), (outputs, 2)];
        let tensors = sizes.into_iter().enumerate();
        check(&Case {
            op: "lora_stacked",
            name: format!("{count} rows, {inputs} to {outputs}, rank {most}"),
            gates: GATES,
            inputs: tensors.map(|(seed, shape)| random(seed as u64, shape, DType::F64)).collect(),
            run: &|tensors| {
                let (x, y) = (&tensors[0], tensors[1].copy()?);
                let mut stack = LoraStack::new(3, most, (outputs, inputs), x.dtype(), x.device())?;
                for (slot, index) in [(0, 2), (2, 4)] {
                    let (a, b) = (tensors[index].clone(), tensors[index + 1].clone());
                    stack.set(slot, &LoraAdapter { a, b, scale: SCALE * index as f32 })?;
                }
                lora_stacked_in_place(x, &y, &stack, &RowSlots::new(&slots, x.device())?)?;
                Ok(vec![y])
            },
            gradients: Gradients::None,
            definition: &|tensors| {
                let rows = slots.iter().enumerate().map(|(row, slot)| {
                    let base = tensors[1].narrow(0, row, 1)?;
                    let Some(slot) = *slot else { return Ok(base) };
                    let index = 2 + slot as usize;
                    let x = tensors[0].narrow(0, row, 1)?;
                    base + reference::delta(&x, &tensors[index], &tensors[index + 1], SCALE * index as f32)?
                });
                Ok(vec![Tensor::cat(&rows.collect::<Result<Vec<_>>>()?, 0)?])
            },
        });
    }
}

#[test]
fn a_layer_with_adapters_by_row_matches_the_definition() {
    // What is one launch on an NVIDIA GPU, with each of its kernels, and what is not: rows, widths and ranks.
    for (count, (inputs, outputs, rank)) in [
        (16, (264, 5000, 16)),
        (5, (1032, 9000, 8)),
        (1, (64, 32, 8)),
        (16, (896, 96, 16)),
        (9, (640, 64, 24)),
        (3, (1088, 32, 64)),
        (17, (64, 32, 8)),
        (6, (60, 33, 5)),
    ] {
        let slots: Vec<Option<u32>> =
            (0..count).map(|row| [Some(1), None, Some(0)][row * 7 % 5 % 3]).collect();
        let sizes = [(count, inputs), (outputs, inputs), (rank, inputs), (outputs, rank), (1, outputs)];
        let tensors = sizes.into_iter().enumerate();
        check(&Case {
            op: "linear_with_adapters",
            name: format!("{count} rows, {inputs} to {outputs}, rank {rank}"),
            gates: GATES,
            inputs: tensors.map(|(seed, shape)| random(seed as u64, shape, DType::F64)).collect(),
            run: &|tensors| {
                let [x, weight, a, b, bias] = tensors else { unreachable!("five inputs") };
                let projection = Projection { weight: weight.clone(), bias: Some(bias.flatten_all()?) };
                let mut stack = LoraStack::new(2, rank, (outputs, inputs), x.dtype(), x.device())?;
                for slot in 0..2 {
                    let scale = SCALE * (slot + 1) as f32;
                    stack.set(slot, &LoraAdapter { a: a.clone(), b: b.clone(), scale })?;
                }
                let slots = RowSlots::new(&slots, x.device())?;
                // Twice: one call leaves the stack's memory as the next needs it.
                linear_with_adapters(x, &projection, &stack, &slots)?;
                Ok(vec![linear_with_adapters(x, &projection, &stack, &slots)?])
            },
            gradients: Gradients::None,
            definition: &|tensors| {
                let [x, weight, a, b, bias] = tensors else { unreachable!("five inputs") };
                let rows = slots.iter().enumerate().map(|(row, slot)| {
                    let x = x.narrow(0, row, 1)?;
                    let base = (x.matmul(&weight.t()?)? + bias)?;
                    let Some(slot) = *slot else { return Ok(base) };
                    base + reference::delta(&x, a, b, SCALE * (slot + 1) as f32)?
                });
                Ok(vec![Tensor::cat(&rows.collect::<Result<Vec<_>>>()?, 0)?])
            },
        });
    }
}

/// x, A, B, magnitude; weight, bias and norm are constant, and the same in all float types.
fn dora_inputs(rows: usize, inputs: usize, outputs: usize, rank: usize) -> (Vec<Tensor>, [Tensor; 3]) {
    let tensors = vec![
        random(1, (rows, inputs), DType::F64),
        random(2, (rank, inputs), DType::F64),
        random(3, (outputs, rank), DType::F64),
        random(4, outputs, DType::F64),
    ];
    let constant = |tensor: Tensor| tensor.to_dtype(DType::F64).unwrap();
    let weight = constant(random(5, (outputs, inputs), DType::BF16));
    let norm = reference::row_norms(&weight, &tensors[1], &tensors[2], SCALE).unwrap();
    let norm = constant(norm.to_dtype(DType::F32).unwrap());
    (tensors, [weight, constant(random(6, outputs, DType::BF16)), norm])
}

#[test]
fn dora_and_its_gradients_match_the_definition() {
    for (rows, inputs, outputs, rank) in [(1, 3, 5, 1), (9, 40, 33, 8), (50, 70, 100, 5)] {
        let (tensors, constants) = dora_inputs(rows, inputs, outputs, rank);
        let on = |like: &Tensor| {
            let [weight, bias] = [0, 1].map(|index: usize| {
                constants[index].to_dtype(like.dtype()).unwrap().to_device(like.device()).unwrap()
            });
            let norm = constants[2].to_dtype(DType::F32).unwrap().to_device(like.device()).unwrap();
            (Projection { weight, bias: Some(bias) }, norm)
        };
        let of = |inputs: &[Tensor]| Dora { adapter: adapter(inputs), magnitude: inputs[3].clone() };
        let explicit = |inputs: &[Tensor], dy: &[Tensor]| {
            let (x, (projection, norm), layer) = (&inputs[0], on(&inputs[0]), of(inputs));
            let frozen = Projection { weight: projection.weight.clone(), bias: None };
            let projected = lora_down(x, &layer.adapter)?;
            let sum = (crate::linear::linear(x, &frozen)? + lora_delta(x, &layer.adapter)?)?;
            let [dx, da, db, dm] = [0, 1, 2, 3]
                .map(|index| zeros(&inputs[index], if index == 0 { x.dtype() } else { DType::F32 }));
            let lora = LoraGradients { dx: Some(&dx), da: &da, db: &db };
            let into = DoraGradients { lora, magnitude: &dm };
            dora_backward(x, &dy[0], &projection, &layer, &norm, &sum, &projected, &into)?;
            Ok(vec![dx, da, db, dm])
        };
        for gradients in [Gradients::Recorded, Gradients::Explicit(&explicit)] {
            check(&Case {
                op: "dora",
                name: format!("{rows} rows, {inputs} to {outputs}, rank {rank}"),
                gates: [Gate::Lora, Gate::DoraBackward],
                inputs: tensors.clone(),
                run: &|inputs| {
                    let (projection, norm) = on(&inputs[0]);
                    Ok(vec![dora(&inputs[0], &projection, &of(inputs), &norm)?])
                },
                gradients,
                definition: &|inputs| {
                    let delta = reference::delta(&inputs[0], &inputs[1], &inputs[2], SCALE)?;
                    let [weight, bias, norm] = &constants;
                    Ok(vec![reference::dora(&inputs[0], weight, bias, &delta, &inputs[3], norm)?])
                },
            });
        }
    }
}

#[test]
fn norms_of_combined_weights_match_the_definition() {
    for (inputs, outputs, rank) in [(3, 5, 1), (40, 33, 8), (1100, 130, 20)] {
        check(&Case {
            op: "dora_norm",
            name: format!("[{outputs}, {inputs}], rank {rank}"),
            gates: GATES,
            inputs: [(outputs, inputs), (rank, inputs), (outputs, rank)]
                .into_iter()
                .enumerate()
                .map(|(seed, shape)| random(seed as u64, shape, DType::F64))
                .collect(),
            run: &|inputs| Ok(vec![dora_norm(&inputs[0], &adapter(inputs))?]),
            gradients: Gradients::None,
            definition: &|inputs| Ok(vec![reference::row_norms(&inputs[0], &inputs[1], &inputs[2], SCALE)?]),
        });
    }
}

#[test]
fn an_adapter_of_zeros_changes_nothing() {
    let (x, base) = (random(1, (20, 30), DType::F32), random(2, (20, 40), DType::F32));
    let (a, b) = (random(3, (8, 30), DType::F32), Tensor::zeros((40, 8), DType::F32, &Device::Cpu).unwrap());
    let adapter = LoraAdapter { a, b, scale: 2. };
    let y = lora(&x, &base, &[LoraSegment { rows: 3..20, adapter: &adapter }]).unwrap();
    assert_eq!(bits(&y), bits(&base));
}

#[test]
fn results_do_not_depend_on_the_number_of_threads() {
    let (x, dy) = (random(1, (300, 90), DType::F32), random(2, (300, 700), DType::F32));
    let (a, b) = (random(3, (16, 90), DType::BF16), random(4, (700, 16), DType::BF16));
    let adapter = LoraAdapter { a, b, scale: 2. };
    let all = || {
        let dx = zeros(&x, DType::F32);
        let (da, db) = (zeros(&adapter.a, DType::F32), zeros(&adapter.b, DType::F32));
        let projected = lora_down(&x, &adapter).unwrap();
        let into = LoraGradients { dx: Some(&dx), da: &da, db: &db };
        lora_backward(&x, &dy, &adapter, &projected, &into).unwrap();
        let norm = dora_norm(&random(5, (700, 90), DType::F32), &adapter).unwrap();
        [dx, da, db, norm, lora_delta(&x, &adapter).unwrap()].map(|tensor| bits(&tensor))
    };
    let expected = all();
    for threads in [1, 2, 5] {
        pool::tests::with_threads(threads, || assert_eq!(all(), expected, "{threads} threads"));
    }
}

#[test]
fn what_does_not_fit_is_named() {
    let (x, base) = (random(1, (4, 6), DType::F32), random(2, (4, 5), DType::F32));
    let make = |a: (usize, usize), b: (usize, usize)| LoraAdapter {
        a: random(3, a, DType::F32),
        b: random(4, b, DType::F32),
        scale: 1.,
    };
    let good = make((2, 6), (5, 2));
    let call = |rows: &[(usize, usize)], adapter: &LoraAdapter| {
        let segments: Vec<_> =
            rows.iter().map(|&(start, end)| LoraSegment { rows: start..end, adapter }).collect();
        crate::testing::message(lora(&x, &base, &segments))
    };
    for (message, parts) in [
        (call(&[(0, 5)], &good), ["0..5", "4 rows"]),
        (call(&[(0, 3), (2, 4)], &good), ["2..4", "row 3"]),
        (call(&[(0, 4)], &make((2, 7), (5, 2))), ["[2, 7]", "[4, 6]"]),
        (call(&[(0, 4)], &make((2, 6), (5, 3))), ["[5, 3]", "[2, 6]"]),
        (call(&[(0, 4)], &make((2, 6), (7, 2))), ["[7, 2]", "[4, 5]"]),
    ] {
        assert!(parts.iter().all(|part| message.contains(part)), "{message}");
    }
    let tracked = candle_core::Var::from_tensor(&base).unwrap();
    let message = crate::testing::message(lora_in_place(&x, &tracked, &[]));
    assert!(message.contains("outside of any graph"), "{message}");
}
